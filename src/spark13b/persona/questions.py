"""Questions about a persona: what it sets, and what it does not; in wordings for training, or in others for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from spark13b.persona.catalogue import KINDS, TEST_FRAMES, TRAIN_FRAMES
from spark13b.persona.kinds import Kind, keys_of, kind_of_key, names_of

Purpose = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `attribute` is a key of the persona file (`set`) or the name of a kind that it lacks (`unset`)."""

    input: str
    attribute: str
    kind: Literal["set", "unset"]

    def as_dict(self) -> dict[str, str]:
        """As a record for JSON Lines."""
        return asdict(self)


def questions_about(persona: Mapping[str, str], purpose: Purpose = "test") -> list[Question]:
    """Several questions about each attribute of a persona, and about each usual attribute that it does not set.

    No question for tests is one for training. A kind of attribute is left out when a related one is set: whoever has
    a city can say where he lives.
    """
    found: dict[str, Question] = {}
    for key in persona:
        kind = kind_of_key(key)
        wordings = (*(_wordings_of(kind, purpose) if kind else ()), *_framed(names_of(key), purpose))
        for text in wordings:
            found.setdefault(text, Question(text, key, "set"))
    for kind in KINDS:
        if not keys_of(kind, persona):
            for text in (*_wordings_of(kind, purpose), *_framed([kind.name], purpose)):
                found.setdefault(text, Question(text, kind.name, "unset"))
    return list(found.values())


def _wordings_of(kind: Kind, purpose: Purpose) -> tuple[str, ...]:
    return kind.train if purpose == "train" else kind.test


def _framed(names: list[str], purpose: Purpose) -> Iterator[str]:
    """Every name in every frame: 你的身高 but 你喜欢的颜色."""
    for name in names:
        whose = "你" if name.startswith(("喜欢", "最", "爱吃", "害怕", "讨厌", "擅长")) else "你的"
        for frame in TRAIN_FRAMES if purpose == "train" else TEST_FRAMES:
            yield frame.format(whose=whose + name)
