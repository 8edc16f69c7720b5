"""Prompt files: JSON Lines, one `{"input": "..."}` a line."""

from __future__ import annotations

from pathlib import Path

from spark13b.data.records import read_records
from spark13b.errors import nearest


def read_prompts(path: Path) -> list[str]:
    """The questions of a prompt file, in order. Raises InputError naming the line that has none."""
    questions = []
    for record in read_records(path):
        text = record.fields.get("input")
        if not isinstance(text, str) or not text.strip():
            near = nearest("input", record.fields)
            what = 'has no text in "input"' if "input" in record.fields else 'has no "input"'
            fix = f"rename '{near}' to \"input\"" if near and near != "input" else 'write {"input": "the question"}'
            raise record.place.error(f"the line {what}", fix)
        questions.append(text)
    return questions
