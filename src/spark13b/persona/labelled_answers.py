"""Answers that people labelled by sense, to measure a judge with: `tuning`, which the rules were tuned on, and
`held_out`, which they were not and which has personas that the other part has not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from spark13b.data.records import Record, read_records
from spark13b.persona.predictions import Answer, answer_of

Part = Literal["tuning", "held_out"]
PARTS: tuple[Part, ...] = get_args(Part)

_FOLDER = Path(__file__).parent / "labelled"


def personas() -> dict[str, dict[str, str]]:
    """The personas of the labelled answers: name to attributes. The first is that of the original's documentation."""
    found: dict[str, dict[str, str]] = json.loads((_FOLDER / "personas.json").read_text(encoding="utf-8"))
    return found


def labelled_answers(part: Part, *, named: bool = False) -> Iterator[tuple[dict[str, str], Answer]]:
    """(persona, answer) of a part.

    What a question asks is `named` by the record, as in the questions of `spark13b persona questions`; else it is left
    to be found out from the question's words, as in questions of any other kind.
    """
    known = personas()
    for record in read_records(_FOLDER / f"{part}.jsonl"):
        persona = known[record.fields["persona"]]
        used = ("input", "predict", "label", "attribute") if named else ("input", "predict", "label")
        yield persona, answer_of(Record({name: record.fields[name] for name in used}, record.place), persona)
