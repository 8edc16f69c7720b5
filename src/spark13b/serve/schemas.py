"""What clients of the OpenAI API may send: checked at the edge, unknown fields refused with the nearest one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from spark13b.config.sections import GenerationConfig
from spark13b.errors import nearest
from spark13b.infer.conversation import Turn

_MAX_CHOICES = 16
_MAX_TOP = 20
_SEEDS = 2**32
_LEAST = 1e-9
# what this server cannot do, and the values that ask for nothing
_UNABLE: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "suffix": ("",),
    "best_of": (1,),
}


class Body(BaseModel):
    """A request's body. Fields that only describe the client are taken and ignored."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    parallel_tool_calls: Any = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        """Refuse what is not there, and what this server cannot do; drop what asks for nothing."""
        if not isinstance(values, dict):
            return values
        for name, nothing in _UNABLE.items():
            value = values.get(name)
            if value is not None and not any(value == off and type(value) is type(off) for off in nothing):
                raise _wrong(name, f"this server has no {name}; leave it out")
        values = {name: value for name, value in values.items() if name not in _UNABLE}
        for name in values:
            if name not in cls.model_fields:
                near = nearest(name, cls.model_fields)
                shown = name[:100].encode("ascii", "backslashreplace").decode()
                raise _wrong(shown, f"unknown field '{shown}'" + (f"; did you mean '{near}'?" if near else ""))
        return values


def _wrong(name: str, message: str) -> PydanticCustomError:
    """An error of a field that the model does not have."""
    return PydanticCustomError("field", "{message}", {"message": message, "param": name})


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool | None = None


class Drawn(Body):
    """What chat and completions share: how answers are drawn."""

    model: StrictStr | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[StrictInt, Field(ge=1, le=_MAX_CHOICES)] | None = None
    stop: StrictStr | list[StrictStr] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, strict=True)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    seed: StrictInt | None = None
    # beyond OpenAI's
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0, le=1000, strict=True)] | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0)] | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and (len(stop) > _MAX_CHOICES or "" in stop):
            raise ValueError(f"give at most {_MAX_CHOICES} stop texts, none of them empty")
        return stop

    def generation(self, defaults: GenerationConfig, most: int | None) -> GenerationConfig:
        """The options of the engine: the server's, changed by what was asked for."""
        asked: dict[str, Any] = {
            "top_k": self.top_k,
            "top_p": None if self.top_p is None else max(self.top_p, _LEAST),  # 0: the most probable alone
            "repetition_penalty": self.repetition_penalty,
            "min_new_tokens": self.min_tokens,
            "max_new_tokens": most,
            "seed": None if self.seed is None else self.seed % _SEEDS,
        }
        if self.stop:
            asked["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        if any(value is not None for value in (self.temperature, self.top_k, self.top_p)):
            asked["do_sample"] = self.temperature is None or self.temperature > 0
            asked["temperature"] = self.temperature or None
        values = defaults.model_dump() | {name: value for name, value in asked.items() if value is not None}
        values["num_beams"] = 1
        values["min_new_tokens"] = min(values["min_new_tokens"], values["max_new_tokens"])
        return GenerationConfig(**values)


class Part(BaseModel):
    """One part of a message's content; only text can be read."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: StrictStr


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[Part]
    name: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _sent_back(cls, values: Any) -> Any:
        """Clients send our answers back with all of OpenAI's fields, null where there is nothing."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if name in cls.model_fields or value not in (None, [])}

    def turn(self) -> Turn:
        """The message as a turn."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class ChatBody(Drawn):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=_MAX_TOP)] | None = None

    @property
    def most(self) -> int | None:
        """The longest answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives are told with each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(Drawn):
    """POST /v1/completions"""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=_MAX_TOP)] | None = None
    echo: StrictBool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt: text, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)  # type: ignore[arg-type]


class Problem(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ProblemBody(BaseModel):
    """The body of every error."""

    error: Problem
