"""What is asked of the engine and what comes back: plain values, no tensors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from spark13b.config.sections import GenerationConfig

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """One prompt and how its answer is drawn.

    `logprobs`: None, or how many alternatives are told with each token (0: only the token's own log-probability).
    `goes_on`: the answer is no text of its own but goes on from the prompt's, so that a space it begins with is told.
    """

    prompt: Sequence[int]
    options: GenerationConfig
    logprobs: int | None = None
    goes_on: bool = False


@dataclass(frozen=True)
class Token:
    """A token of an answer. Log-probabilities are those of the model itself: before penalty, temperature and cuts."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # the most probable tokens and their log-probabilities, best first


@dataclass
class Generation:
    """An answer in the making; `Engine.add` gives it, `Engine.step` makes it grow."""

    request: Request
    number: int
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    score: float | None = None  # of a beam: the mean log-probability of its tokens
    reused: int = 0  # tokens of the prompt that needed no reading: a text before began with them
    alternatives: list[Generation] = field(default_factory=list)  # the other beams of a beam search, best first
    added_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    finished_at: float | None = None

    @property
    def done(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True)
class Piece:
    """What one step added to an answer. Text may be empty (half a character, or what may become a stop string)."""

    generation: Generation
    text: str
    tokens: tuple[Token, ...]
