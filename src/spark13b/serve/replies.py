"""Bodies of answers in OpenAI's shapes."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from spark13b.data.stream_decoder import StreamDecoder
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.infer.requests import Generation, Token


class Reply:
    """One answer to one client, of one or more choices: makes the whole body, or the chunks of a stream."""

    def __init__(self, kind: str, model: str, tokenizer: SparkTokenizer) -> None:
        """`kind` is `chat` or `text`."""
        self._chat = kind == "chat"
        self.id = f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._model, self._tokenizer, self._created = model, tokenizer, int(time.time())
        self._begins: dict[int, int] = {}  # where the answer stands in the text of each choice
        self._places: dict[int, _Places] = {}

    def whole(self, generations: Sequence[Generation], echoes: Sequence[str]) -> dict[str, Any]:
        """The body of an answer that comes at once. `echoes`: what stands before each text of a completion."""
        for index, echo in enumerate(echoes):
            self.begin(index, echo)
        choices = [
            {
                "index": index,
                **self._content(generation.text, echo, delta=False),
                "logprobs": self._logprobs(index, generation, generation.tokens),
                "finish_reason": _reason(generation),
            }
            for index, (generation, echo) in enumerate(zip(generations, echoes, strict=True))
        ]
        return {**self._head(stream=False), "choices": choices, "usage": usage(generations)}

    def begin(self, index: int, echo: str) -> dict[str, Any] | None:
        """The chunk before the first text of a choice."""
        self._begins[index] = len(echo)
        if self._chat:
            return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, None)
        return self._chunk(index, {"text": echo}, None, None) if echo else None

    def piece(self, index: int, generation: Generation, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """A chunk with text."""
        content = self._content(text, "", delta=True)
        return self._chunk(index, content, self._logprobs(index, generation, tokens), None)

    def end(self, index: int, generation: Generation) -> dict[str, Any]:
        """The last chunk of a choice."""
        return self._chunk(index, {"delta": {}} if self._chat else {"text": ""}, None, _reason(generation))

    def usage(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """The chunk with the token counts, behind all others."""
        return {**self._head(stream=True), "choices": [], "usage": usage(generations)}

    def _content(self, text: str, echo: str, delta: bool) -> dict[str, Any]:
        if not self._chat:
            return {"text": echo + text}
        return {"delta": {"content": text}} if delta else {"message": {"role": "assistant", "content": text}}

    def _chunk(self, index: int, content: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head(stream=True), "choices": [choice]}

    def _head(self, stream: bool) -> dict[str, Any]:
        name = ("chat.completion" + (".chunk" if stream else "")) if self._chat else "text_completion"
        return {"id": self.id, "object": name, "created": self._created, "model": self._model}

    def _logprobs(self, index: int, generation: Generation, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if generation.request.logprobs is None:
            return None
        if self._chat:
            content = [
                {
                    **self._token(token.id, token.logprob),
                    "top_logprobs": [self._token(one, value) for one, value in token.top],
                }
                for token in tokens
            ]
            return {"content": content, "refusal": None}
        if index not in self._places:
            decoder = self._tokenizer.stream(begins=not generation.request.goes_on)
            self._places[index] = _Places(decoder, self._begins[index])
        return {
            "tokens": [spelled(self._tokenizer.piece(token.id))[0] for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {spelled(self._tokenizer.piece(one))[0]: value for one, value in token.top} for token in tokens
            ],
            "text_offset": self._places[index].of(tokens),
        }

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        text, data = spelled(self._tokenizer.piece(token))
        return {"token": text, "logprob": logprob, "bytes": list(data)}


class _Places:
    """Where the tokens of a choice begin in its text, in characters; all tokens of one character where it begins."""

    def __init__(self, decoder: StreamDecoder, first: int) -> None:
        self._decoder, self._next = decoder, first

    def of(self, tokens: Sequence[Token]) -> list[int]:
        """The places of the tokens that come next."""
        places = []
        for token in tokens:
            places.append(self._next)
            self._next += len(self._decoder.push(token.id))
        return places


def usage(generations: Sequence[Generation]) -> dict[str, Any]:
    """The tokens that were read and written; a prompt counts once however many choices were made of it."""
    prompts = {id(generation.request.prompt): generation for generation in reversed(generations)}  # each one's first
    asked = sum(len(generation.request.prompt) for generation in prompts.values())
    written = sum(len(generation.tokens) for generation in generations)
    cached = sum(generation.reused for generation in prompts.values())
    return {
        "prompt_tokens": asked,
        "completion_tokens": written,
        "total_tokens": asked + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def spelled(piece: str) -> tuple[str, bytes]:
    """A piece of the tokenizer as text and as bytes: `▁` is a space, `<0xE4>` a byte of a character."""
    if piece.startswith("<0x") and len(piece) == len("<0xE4>"):
        return piece, bytes([int(piece[3:5], 16)])
    text = piece.replace("\u2581", " ")
    return text, text.encode()


def event(value: Any) -> str:
    """A server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n\n"


def problem(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _reason(generation: Generation) -> str:
    return generation.finish_reason or "stop"
