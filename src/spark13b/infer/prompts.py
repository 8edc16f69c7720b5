"""What is asked: prompts from arguments, from lines, from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.data.records import Record, read_records
from spark13b.errors import InputError, nearest


@dataclass(frozen=True)
class Prompt:
    """One question, or the token ids of a whole prompt; `where` and `line` name it in errors."""

    text: str = ""
    ids: tuple[int, ...] | None = None
    where: str = "prompt"
    line: int | None = None

    @property
    def asked(self) -> Any:
        """The question as it stands in the answer's record."""
        return self.text if self.ids is None else list(self.ids)

    def error(self, what: str, fix: str) -> InputError:
        """An error that names this prompt."""
        return InputError(what, where=self.where, line=self.line, fix=fix)


def prompts_of(arguments: Iterable[str]) -> list[Prompt]:
    """The questions of command line arguments; `[q1##q2]`, as the original has it, is two. Raises InputError."""
    texts: list[str] = []
    for argument in arguments:
        inner = argument.strip()
        if inner.startswith("[") and inner.endswith("]") and "##" in inner:
            texts += [part.strip() for part in inner[1:-1].split("##")]
        else:
            texts.append(argument)
    prompts = [Prompt(text, where=f"prompt {number}") for number, text in enumerate(texts, 1)]
    for prompt in prompts:
        if not prompt.text.strip():
            raise prompt.error("the prompt is empty", "write a question")
    return prompts


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in order: JSON Lines or a JSON array of {"input": "..."}, or plain text, one a line.

    `inputs`, and `instruction` with `input` behind it, are taken as well, and `input_ids` for a prompt that is already
    in tokens. Raises InputError naming the line that has none.
    """
    return [_prompt(record) for record in read_records(path)]


def _prompt(record: Record) -> Prompt:
    fields, place = record.fields, record.place
    where, line = str(place.path), place.line
    ids = fields.get("input_ids")
    if ids is not None:
        if not isinstance(ids, list) or not ids or not all(type(one) is int for one in ids):
            raise place.error('"input_ids" is not a list of token ids', 'write {"input_ids": [5, 17, 203]}')
        return Prompt(ids=tuple(ids), where=where, line=line)
    for name in ("instruction", "input", "inputs", "text"):
        if name in fields:
            texts = [fields[name]]
            if name == "instruction" and fields.get("input"):
                texts.append(fields["input"])
            if all(isinstance(text, str) for text in texts) and "".join(texts).strip():
                return Prompt("".join(texts), where=where, line=line)
            raise place.error(f'the line has no text in "{name}"', 'write {"input": "the question"}')
    near = nearest("input", fields)
    fix = f"rename '{near}' to \"input\"" if near else 'write {"input": "the question"}'
    raise place.error('the line has no "input"', fix)


def fingerprint_text(prompts: list[Prompt]) -> bytes:
    """The prompts as bytes, for a hash."""
    return json.dumps([prompt.asked for prompt in prompts], ensure_ascii=False).encode()
