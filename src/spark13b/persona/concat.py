"""Put a persona in front of every example of a template: the lines that a teacher is asked with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spark13b.characters import WHOLE, half_character
from spark13b.data.place import Place
from spark13b.data.records import Record, kind_of, read_records
from spark13b.errors import InputError, nearest
from spark13b.files import check_writable_file, replacing
from spark13b.persona.attributes import read_attributes
from spark13b.persona.frame import frame

_QUESTION = ("input", "inputs")  # the first that a line has
_REFERENCE = "target"
_SHOWN = 5  # broken lines whose fault is told


def concat(template: Path, attribute: Path, output: Path, *, force: bool = False) -> int:
    """Write one line of `frame` for each record `{"input", "target"}` of a template; how many there are.

    Raises InputError that names the template's broken lines, or what is wrong with attribute.json.
    """
    check_writable_file(output, force=force, inputs=(template, attribute))
    persona = read_attributes(attribute)
    frame(persona, "", "")  # a key that no line could hold
    examples = read_template(template)
    with replacing(output, force=force) as draft, draft.open("w", encoding="utf-8", newline="\n") as lines:
        for question, reference in examples:
            lines.write(frame(persona, question, reference) + "\n")
    return len(examples)


def read_template(path: Path) -> list[tuple[str, str]]:
    """The questions and reference answers of a template. Raises InputError that names all broken lines."""
    examples: list[tuple[str, str]] = []
    faults: list[InputError] = []
    try:
        for record in read_records(path):
            try:
                examples.append(_example(record))
            except InputError as fault:
                faults.append(fault)
    except InputError as fault:  # nothing can be read behind it
        faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        told = [f"line {fault.line}: {fault.what}" for fault in faults[:_SHOWN]]
        if len(faults) > _SHOWN:
            told.append(f"and lines {', '.join(str(fault.line) for fault in faults[_SHOWN : _SHOWN + 50])}")
        raise InputError(
            f"{len(faults)} lines of the template are broken\n    " + "\n    ".join(told),
            where=path,
            line=faults[0].line,
            fix=faults[0].fix,
        )
    return examples


def _example(record: Record) -> tuple[str, str]:
    fields, place = record.fields, record.place
    name = next((name for name in _QUESTION if fields.get(name) is not None), None)
    if name is None:
        raise _lacks(fields, _QUESTION[0], place)
    if fields.get(_REFERENCE) is None:
        raise _lacks(fields, _REFERENCE, place)
    question, reference = _text(fields, name, place), _text(fields, _REFERENCE, place)
    if not question.strip():
        raise place.error(f'"{name}" is empty', "write a question, or remove the line")
    return question, reference


def _text(fields: Mapping[str, object], name: str, place: Place) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise place.error(f'"{name}" must be a string, this is {kind_of(value)}', "write it in quotes")
    if half := half_character(value):
        raise place.error(f'"{name}" holds {half}', WHOLE)
    return value


def _lacks(fields: Mapping[str, object], name: str, place: Place) -> InputError:
    near = nearest(name, fields)
    return place.error(
        f'the line has no "{name}"',
        f'rename "{near}" to "{name}"' if near else 'write {"input": "the question", "target": "an answer"}',
    )
