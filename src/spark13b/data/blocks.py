"""A file in blocks of a few MiB: what one process reads and another one encodes.

Blocks are the same however many processes there are. Lines stay bytes, so that reading costs next to nothing; what
only a parser can divide (an array, a table) comes as values.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from spark13b.data.containers import OnBytes, container_of, open_bytes, suffix_of
from spark13b.data.json_array import read_array
from spark13b.data.place import Place, not_utf8
from spark13b.errors import InputError

BLOCK_BYTES = 1 << 21
_TABLE_ROWS = 2048

Lines = Literal["jsonl", "text"]


@dataclass(frozen=True, slots=True)
class Block:
    """Some records of one file: whole lines from number `line` on, or values that were read, each with its line."""

    path: Path
    line: int
    lines: bytes | None
    kind: Lines
    values: list[tuple[int, Any]]


def read_blocks(path: Path, on_bytes: OnBytes | None = None, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield the blocks of a file, of about `size` bytes, in memory bounded by a block or the longest line.

    `on_bytes` is handed the file's own bytes as they are read, all of them by the end. Raises InputError for a file
    that is missing, empty, damaged, or an array or a table that is broken.
    """
    container = container_of(path)
    if container == "parquet":
        yield from _parquet(path, on_bytes)
        return
    with open_bytes(path, on_bytes) as stream:
        if container == "json":
            yield from _array(stream, path, size)
        elif container == "csv":
            yield from _csv(stream, path)
        else:
            yield from _lines(stream, path, container, size)


def _lines(stream: BinaryIO, path: Path, kind: Lines, size: int) -> Iterator[Block]:
    line, first = 1, True
    open_line: list[bytes] = []  # the beginning of a line whose end was not read yet
    while data := stream.read(max(size, 3) if first else size):
        if first:
            data, first = data.removeprefix(codecs.BOM_UTF8), False
        end = data.rfind(b"\n") + 1
        if not end:
            open_line.append(data)
            continue
        block = b"".join((*open_line, data[:end]))
        open_line = [data[end:]]
        yield Block(path, line, block, kind, [])
        line += block.count(b"\n")
    block = b"".join(open_line)
    if block:
        yield Block(path, line, block, kind, [])


def _array(stream: BinaryIO, path: Path, size: int) -> Iterator[Block]:
    values: list[tuple[int, Any]] = []
    taken = 0

    def read(count: int) -> bytes:
        nonlocal taken
        data = stream.read(count)
        taken += len(data)
        return data

    begun = 0
    for place, value in read_array(read, Place(path, 1)):
        values.append((place.line, value))
        if taken - begun >= size or len(values) >= _TABLE_ROWS:
            yield Block(path, values[0][0], None, "jsonl", values)
            values, begun = [], taken
    if values:
        yield Block(path, values[0][0], None, "jsonl", values)


def _csv(stream: BinaryIO, path: Path) -> Iterator[Block]:
    csv.field_size_limit(1 << 30)
    read = 0  # lines

    def lines() -> Iterator[str]:
        nonlocal read
        for raw in stream:
            read += 1
            if read == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(Place(path, read), raw, error.start) from None

    reader = csv.DictReader(lines(), delimiter="\t" if suffix_of(path) == ".tsv" else ",", strict=True)
    values: list[tuple[int, Any]] = []
    begins = 1
    try:
        _ = reader.fieldnames
        begins = read + 1
        for row in reader:
            extra = row.pop(None, None)  # where DictReader puts what has no name
            if extra is not None:
                raise Place(path, begins).error(
                    f"the row has {len(extra)} more fields than the first line names",
                    "quote fields with commas in them",
                )
            values.append((begins, row))
            begins = read + 1
            if len(values) >= _TABLE_ROWS:
                yield Block(path, values[0][0], None, "jsonl", values)
                values = []
    except csv.Error as error:
        raise Place(path, begins).error(f"the table is broken: {error}", "mend the row that begins here") from None
    if values:
        yield Block(path, values[0][0], None, "jsonl", values)


def _parquet(path: Path, on_bytes: OnBytes | None) -> Iterator[Block]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            f"reading Parquet needs the package pyarrow: {error}", where=path, fix="pip install 'spark13b[parquet]'"
        ) from None
    row = 1
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(_TABLE_ROWS):
                values = list(enumerate(batch.to_pylist(), row))
                row += len(values)
                if values:
                    yield Block(path, values[0][0], None, "jsonl", values)
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the Parquet file cannot be read: {reason}", where=path, fix="copy it again") from None
    with path.open("rb") as stream:  # a table is read from its end: its bytes are shown afterwards
        while data := stream.read(1 << 20):
            if on_bytes is not None:
                on_bytes(data)
