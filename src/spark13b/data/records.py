"""Records one at a time, each with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from spark13b.data.blocks import Block, read_blocks
from spark13b.data.containers import OnBytes, container_of
from spark13b.data.place import Place, excerpt, not_utf8
from spark13b.errors import InputError

__all__ = ["Record", "container_of", "kind_of", "read_records", "records_of"]


class Record(NamedTuple):
    """One record: its fields as they were written, and its place. A line of plain text is `{"text": line}`."""

    fields: dict[str, Any]
    place: Place


def read_records(path: Path, on_bytes: OnBytes | None = None) -> Iterator[Record]:
    """Yield the records of a file, in order, in memory bounded by a block (`blocks.py`) or the largest record.

    `on_bytes` is handed the file's bytes as they are read, all of them by the end. A plain text file has one record a
    line; blank lines are skipped. Raises InputError, with file and line, for a file that is missing, empty, cut off,
    not UTF-8, or that holds anything but objects.
    """
    any_record = False
    for block in read_blocks(path, on_bytes):
        for record in records_of(block):
            if isinstance(record, InputError):
                raise record
            any_record = True
            yield record
    if not any_record:
        raise no_records(path)


def records_of(block: Block) -> Iterator[Record | InputError]:
    """The records of a block; in the place of one that cannot be read, the error that says so."""
    if block.lines is None:
        for line, value in block.values:
            yield _record(value, Place(block.path, line))
        return
    for line, raw in enumerate(block.lines.split(b"\n"), block.line):
        place = Place(block.path, line)
        if block.kind == "jsonl" and raw:
            try:
                yield _record(orjson.loads(raw), place)
                continue
            except orjson.JSONDecodeError:  # blank, broken, or what the standard library reads all the same
                pass
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield not_utf8(place, raw, error.start)
            continue
        if not text or text.isspace():
            continue
        text = text.rstrip("\r")
        yield Record({"text": text}, place) if block.kind == "text" else _from_json(text, place)


def no_records(path: Path) -> InputError:
    """The error for a file without any."""
    return InputError("the file holds no records", where=path, fix="give a file with at least one record")


def _from_json(line: str, place: Place) -> Record | InputError:
    try:
        return _record(json.loads(line), place)
    except ValueError as error:
        return _not_json(place, line, error)
    except RecursionError:
        return place.error("the record is nested too deeply", "remove it")


def _record(value: Any, place: Place) -> Record | InputError:
    if isinstance(value, dict):
        return Record(value, place)
    return place.error(
        f"a record must be an object, this is {kind_of(value)}: {excerpt(json.dumps(value, ensure_ascii=False), 0)}",
        'write it as {"text": ...} or remove it',
    )


def kind_of(value: Any) -> str:
    """What a JSON value is called."""
    kinds = {str: "a string", list: "an array", dict: "an object", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _not_json(place: Place, line: str, error: ValueError) -> InputError:
    fix = "mend or remove the line; JSON Lines has one whole record a line"
    if line.strip() == "{":
        fix = "write the records as one JSON array [...], or one record a line (JSON Lines)"
    message = str(error)  # a number of 5000 digits is a plain ValueError
    if isinstance(error, json.JSONDecodeError):
        message = f"{error.msg}: {excerpt(line, error.pos)}"
    return place.error(f"this line is not JSON: {message}", fix)
