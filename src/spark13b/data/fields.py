"""What the fields of a record mean: the text of a document, the question and answer of an example."""

from __future__ import annotations

from typing import Any

from spark13b.data.clean import clean
from spark13b.data.records import Record, kind_of
from spark13b.errors import InputError, nearest

_DOCUMENT = ("output", "text")  # the first that a record has
_QUESTION = ("instruction", "input")  # written one after the other
_ANSWER = "output"

DOCUMENT_FIELDS = frozenset(_DOCUMENT)
EXAMPLE_FIELDS = frozenset((*_QUESTION, _ANSWER))
_KNOWN = DOCUMENT_FIELDS | EXAMPLE_FIELDS


def document(record: Record) -> str:
    """The cleaned text of a pretraining record: its `output`, or else its `text`. Raises InputError without either."""
    for name in _DOCUMENT:
        text = _text(record, name)
        if text is not None:
            return clean(text)
    raise _lacks(record, "'output' or 'text'", _DOCUMENT)


def question_and_answer(record: Record) -> tuple[str, str]:
    """The cleaned question (`instruction` + `input`) and answer (`output`) of an instruction record.

    A field that is null counts as absent. Raises InputError without an `output`, or with neither of the other two.
    """
    answer = _text(record, _ANSWER)
    if answer is None:
        raise _lacks(record, f"'{_ANSWER}'", (_ANSWER,))
    parts = [text for name in _QUESTION if (text := _text(record, name)) is not None]
    if not parts:
        raise _lacks(record, "'instruction' or 'input'", _QUESTION)
    return clean("".join(parts)), clean(answer)


def _text(record: Record, name: str) -> str | None:
    value = record.fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise record.place.error(f"'{name}' must be a string, this is {kind_of(value)}", "write it in quotes")
    try:
        value.encode()  # JSON can write half a surrogate pair, which is no character and has no tokens
    except UnicodeEncodeError as error:
        raise record.place.error(
            f"'{name}' holds half a character: \\u{ord(value[error.start]):04x} without its other half",
            "remove the escape, or write the whole pair",
        ) from None
    return value


def _lacks(record: Record, wanted: str, names: tuple[str, ...]) -> InputError:
    found = sorted(name for name, value in record.fields.items() if value is not None)
    near = _misspelt(found, names)
    return record.place.error(
        f"the record has no {wanted}; it has " + (", ".join(f"'{name}'" for name in found) or "no field at all"),
        f"did you mean '{near[1]}' by '{near[0]}'?" if near else f"add {wanted}, or remove the record",
    )


def _misspelt(found: list[str], names: tuple[str, ...]) -> tuple[str, str] | None:
    for name in found:
        near = None if name in _KNOWN else nearest(name, names)
        if near:
            return name, near
    return None


def all_texts(value: Any) -> list[str]:
    """Every string in a record's fields, nested ones too, uncleaned: what a tokenizer learns from."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for name, part in value.items() if name not in _NOT_TEXT for text in all_texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in all_texts(part)]
    return []


_NOT_TEXT = {"id", "role", "from"}  # marks, not language
