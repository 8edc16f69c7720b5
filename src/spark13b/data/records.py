"""Reading records one at a time, each with its place: JSON arrays (streamed), JSON Lines and plain text."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from spark13b.data.json_array import read_array
from spark13b.data.place import Place, excerpt, not_utf8
from spark13b.errors import InputError

Container = Literal["json", "jsonl", "text"]
_JSON_LINES, _TEXT = {".jsonl", ".ndjson"}, {".txt", ".md"}

OnBytes = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its fields as they were written, and its place. A line of plain text is `{"text": line}`."""

    fields: dict[str, Any]
    place: Place


def read_records(path: Path, on_bytes: OnBytes | None = None) -> Iterator[Record]:
    """Yield the records of a file, in order, in memory bounded by the largest record.

    `on_bytes` is handed the bytes as they are read, all of them by the end. A plain text file has one record a line;
    blank lines are skipped. Raises InputError, with file and line, for a file that is missing, empty, cut off, not
    UTF-8, or that holds anything but objects.
    """
    container = container_of(path)
    any_record = False
    with path.open("rb") as stream:
        for record in _READERS[container](_Watched(stream, on_bytes), path):
            any_record = True
            yield record
    if not any_record:
        raise InputError("the file holds no records", where=path, fix="give a file with at least one record")


def container_of(path: Path) -> Container:
    """How a file holds its records: by its first character, or by its suffix. Raises InputError as `read_records`."""
    suffix = path.suffix.lower()
    head = _head(path).removeprefix(codecs.BOM_UTF8).lstrip()
    if suffix in _TEXT:
        return "text"
    if head.startswith(b"["):
        return "json"
    if head.startswith(b"{") or suffix in _JSON_LINES:
        return "jsonl"
    if not head:
        raise _empty(path)
    if suffix == ".json":
        raise Place(path, 1).error(
            "this is not JSON: it begins with neither [ nor {",
            "give a JSON array of records, JSON Lines, or plain text named .txt",
        )
    return "text"


def _head(path: Path) -> bytes:
    """The first bytes of a file, once it is certain that it can be read."""
    if path.is_dir():
        raise InputError("this is a folder", where=path, fix="give a file")
    if not path.exists():
        raise InputError("there is no such file", where=path, fix="check --input")
    if not path.is_file():
        raise InputError("this is not a regular file", where=path, fix="write it to a file first")
    with path.open("rb") as stream:
        head = stream.read(4096)
    if not head:
        raise _empty(path)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Place(path, 1).error("the file is UTF-16", f"convert it: iconv -f utf-16 -t utf-8 '{path}' > NEW")
    return head


def _empty(path: Path) -> InputError:
    return InputError("the file is empty", where=path, fix="give a file with at least one record")


class _Watched:
    """A binary stream whose bytes are shown to `on_bytes` as they are read."""

    def __init__(self, stream: IO[bytes], on_bytes: OnBytes | None) -> None:
        self._stream = stream
        self._on_bytes = on_bytes or (lambda data: None)

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._on_bytes(data)
        return data

    def lines(self) -> Iterator[bytes]:
        for line in self._stream:
            self._on_bytes(line)
            yield line


def _read_text(stream: _Watched, path: Path) -> Iterator[Record]:
    for place, line in _decoded_lines(stream, path):
        yield Record({"text": line}, place)


def _read_json_lines(stream: _Watched, path: Path) -> Iterator[Record]:
    for place, line in _decoded_lines(stream, path):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise _not_json(place, line, error) from None
        except RecursionError:
            raise place.error("the record is nested too deeply", "remove it") from None
        yield Record(_fields(value, place), place)


def _read_json_array(stream: _Watched, path: Path) -> Iterator[Record]:
    for place, value in read_array(stream.read, Place(path, 1)):
        yield Record(_fields(value, place), place)


_READERS: dict[Container, Callable[[_Watched, Path], Iterator[Record]]] = {
    "json": _read_json_array,
    "jsonl": _read_json_lines,
    "text": _read_text,
}


def _decoded_lines(stream: _Watched, path: Path) -> Iterator[tuple[Place, str]]:
    """Lines that are not blank, without the byte order mark and the line end."""
    for number, raw in enumerate(stream.lines(), 1):
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        place = Place(path, number)
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(place, raw, error.start) from None
        if line.strip():
            yield place, line.rstrip("\r\n")


def _fields(value: Any, place: Place) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise place.error(f"a record must be an object, this is {kind_of(value)}", 'write it as {"text": ...} or remove it')


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
