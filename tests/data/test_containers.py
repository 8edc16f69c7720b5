"""Files of every kind: tables, compression, folders and patterns; and files that are damaged or cut off."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from spark13b.data import blocks
from spark13b.data.blocks import read_blocks
from spark13b.data.containers import container_of, expanded, open_bytes
from spark13b.data.records import read_records
from spark13b.errors import InputError

RECORDS = [{"text": f'第{number}行,\t"引号"' if number % 3 else f"a\nb {number}"} for number in range(50)]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS).encode()


def table(path: Path, delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["text"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(RECORDS)
    return path


def parquet(path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    return path


def packed(path: Path, pack: Callable[[bytes], bytes], parts: int = 1) -> Path:
    """`parts`: so many compressed streams, one behind the other, as `cat` and parallel compressors make."""
    size = -(-len(LINES) // parts)
    path.write_bytes(b"".join(pack(LINES[at : at + size]) for at in range(0, len(LINES), size)))
    return path


zst = zstandard.ZstdCompressor().compress
MAKERS: dict[str, Callable[[Path], Path]] = {
    "a.csv": table,
    "a.tsv": lambda path: table(path, "\t"),
    "a.parquet": parquet,
    "a.jsonl.gz": lambda path: packed(path, gzip.compress),
    "b.jsonl.gz": lambda path: packed(path, gzip.compress, 3),
    "a.jsonl.zst": lambda path: packed(path, zst),
    "b.jsonl.zst": lambda path: packed(path, zst, 3),
    "named-otherwise.jsonl": lambda path: packed(path, gzip.compress),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_kind_of_file_gives_the_same_records_and_shows_its_own_bytes(tmp_path, name, monkeypatch):
    monkeypatch.setattr(blocks, "_TABLE_ROWS", 7)
    path, seen = MAKERS[name](tmp_path / name), hashlib.sha256()
    assert [record.fields for record in read_records(path, seen.update)] == RECORDS
    assert seen.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "b.jsonl.gz", "a.jsonl.zst", "b.jsonl.zst"])
@pytest.mark.parametrize("kept", [0.5, 0.9, -1])
def test_a_compressed_file_that_is_cut_off_says_so(tmp_path, name, kept):
    path = MAKERS[name](tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)] if kept > 0 else data[:-1])
    with pytest.raises(InputError, match="cut off") as caught:
        list(read_records(path))
    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_damaged_compressed_file_says_so(tmp_path, name):
    path = MAKERS[name](tmp_path / name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    data[len(data) // 2 + 1] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(InputError):
        list(read_records(path))


def test_records_of_a_table_have_the_lines_where_they_begin(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,n\n"one\ntwo",1\nthree,2\n', encoding="utf-8")
    assert [(one.fields["text"], one.place.line) for one in read_records(path)] == [("one\ntwo", 2), ("three", 4)]


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"text\na\nb,c\n", 3, "1 more fields than the first line names"),
        (b'text\na\n"b\n', 3, "the table is broken"),
        (b"text\na\n\xff\n", 3, "0xff is not UTF-8"),
        (b"text\n", None, "no records"),
    ],
)
def test_a_broken_table_is_named_with_its_line(tmp_path, content, line, what):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=what) as caught:
        list(read_records(path))
    assert caught.value.line == line


def test_a_broken_parquet_file_is_named(tmp_path):
    path = parquet(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="the Parquet file cannot be read"):
        list(read_records(path))
    path.write_bytes(b"text")
    with pytest.raises(InputError, match="not a Parquet file"):
        container_of(path)


def test_folders_and_patterns_are_all_their_data_files_in_order(tmp_path):
    for name in ("b.jsonl", "a.txt", "in/c.json.gz", ".hidden/d.txt", "notes.pdf", ".e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [str(path.relative_to(tmp_path)) for path in expanded([tmp_path])]
    assert names == ["a.txt", "b.jsonl", "in/c.json.gz"]
    assert expanded([tmp_path / "*.txt", tmp_path / "in"]) == [
        tmp_path / ".e.txt",
        tmp_path / "a.txt",
        tmp_path / "in/c.json.gz",
    ]
    with pytest.raises(InputError, match="no file matches"):
        expanded([tmp_path / "*.csv"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no data file"):
        expanded([tmp_path / "empty"])


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_blocks_of_any_size_hold_every_line_once_with_its_number(tmp_path, size):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n", 9) + b"\n\n")
    found = list(read_blocks(path, size=size))
    assert b"".join(block.lines or b"" for block in found) == path.read_bytes()[3:]
    line = 1
    for block in found:
        assert block.line == line
        assert block.lines is not None
        line += block.lines.count(b"\n")


def test_bytes_come_whole_through_short_reads(tmp_path):
    path = packed(tmp_path / "a.zst", zst, 5)
    with open_bytes(path) as stream:
        assert b"".join(iter(lambda: stream.read(3), b"")) == LINES
