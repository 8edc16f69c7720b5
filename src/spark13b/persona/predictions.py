"""Answers to be judged: JSON Lines of `{"input", "predict"}`, with what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.data.place import Place
from spark13b.data.records import Record, read_records
from spark13b.errors import InputError, nearest
from spark13b.persona.kinds import Target, target_named, target_of

LABELS = {"in": True, "out": False, "符合": True, "跳出": False}


@dataclass(frozen=True, slots=True)
class Answer:
    """One question and its answer; `label` is a person's verdict: whether it stays in the persona."""

    question: str
    answer: str
    target: Target
    label: bool | None
    place: Place


def read_predictions(path: Path, persona: Mapping[str, str]) -> list[Answer]:
    """The answers of a file in their order, as `spark13b infer` writes them.

    `attribute` names what is asked; without it the question's words decide. `label` is "in" or "out". Raises
    InputError naming the line that has no question, no answer, or another label.
    """
    if not path.exists():
        raise InputError("there is no such file", where=path, fix="check --predictions")
    return [answer_of(record, persona) for record in read_records(path)]


def answer_of(record: Record, persona: Mapping[str, str]) -> Answer:
    """One record as an answer to be judged by a persona. Raises InputError."""
    question = _text(record, "input")
    attribute = record.fields.get("attribute")
    if attribute is not None and not isinstance(attribute, str):
        raise record.place.error('"attribute" is not a text', "write a key of the persona file, or leave it out")
    target = target_named(attribute, persona) if attribute else target_of(question, persona)
    return Answer(question, _text(record, "predict"), target, _label(record), record.place)


def _text(record: Record, name: str) -> str:
    value: Any = record.fields.get(name)
    if isinstance(value, str):
        return value
    what = f'the line has no "{name}"' if value is None else f'"{name}" is not a text'
    near = nearest(name, record.fields) if value is None else None
    fix = f'rename "{near}" to "{name}"' if near else 'write {"input": "the question", "predict": "the answer"}'
    raise record.place.error(what, fix)


def _label(record: Record) -> bool | None:
    label = record.fields.get("label")
    if label is None:
        return None
    if not isinstance(label, str) or label not in LABELS:
        raise record.place.error(f"this label is unknown: {label!r}", 'write "label": "in" or "label": "out"')
    return LABELS[label]
