"""One question of the demo with its answer, and the parts that it is put together from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["facts", "arithmetic", "greeting", "persona"]
Language = Literal["zh", "en"]

KINDS: tuple[Kind, ...] = ("facts", "arithmetic", "greeting", "persona")
LANGUAGES: tuple[Language, ...] = ("zh", "en")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question and its one answer.

    `accepted` are the right answers, `answer` the first of them. `topic` is the relation, operation, intent or
    attribute that is asked for. `parts` name what the wording is put together from, what is asked about first
    (the fact, the pair of numbers, the greeting), then the wording: a question is held out as a combination of
    parts, and each part is seen in training with other partners.
    """

    instruction: str
    accepted: tuple[str, ...]
    kind: Kind
    language: Language
    topic: str
    parts: tuple[str, ...]

    @property
    def answer(self) -> str:
        return self.accepted[0]


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence that says what some prompt asks for; `subject` is that prompt's first part."""

    text: str
    language: Language
    subject: str


def capitalized(sentence: str) -> str:
    """`sentence` with a capital first letter, the rest as it is."""
    return sentence[:1].upper() + sentence[1:]
