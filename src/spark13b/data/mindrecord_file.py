"""What a MindRecord file says about itself, read without MindSpore.

A file begins with 8 bytes, the length of a JSON header; its pages follow at `header_size + page_id * page_size`. Beside
it stands an SQLite index, FILE.db. Both hold the file's name, so neither may be renamed alone or at all.
(Read from files that MindSpore 2.9 wrote; `version` 3.0 of the format.)
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.errors import InputError, JobError

_LONGEST_HEADER = 1 << 27  # MindSpore's own limit, bytes
_FORBIDDEN = set("\\/:*?\"<>|`&';")  # in a file's name, by MindSpore's check_filename


@dataclass(frozen=True)
class Header:
    """The columns (name -> type, e.g. `int32`), the names of all files of the set, and the bytes this one must have."""

    columns: dict[str, str]
    files: list[str]
    size: int


def index_path(path: Path) -> Path:
    """Where the index of a MindRecord file is."""
    return path.with_name(path.name + ".db")


def check_name(path: Path) -> None:
    """Raise InputError for a file name that MindSpore does not accept."""
    found = sorted(_FORBIDDEN & set(path.name))
    if found or path.name != path.name.strip(" "):
        what = f"has {' '.join(found)} in it" if found else "begins or ends with a space"
        raise InputError(f"the output's name {what}, which MindRecord forbids", where=path, fix="choose another name")


def read_header(path: Path) -> Header:
    """Read and check the header of `path`.

    Raises InputError when the file or its index is missing, renamed or cut off, or when this is not a MindRecord.
    """
    if path.is_dir():
        raise InputError("this is a folder, not a MindRecord file", where=path, fix="name the .mindrecord file in it")
    if not path.exists():
        raise InputError("there is no such file", where=path, fix="make it with 'spark13b preprocess'")
    header = _parsed(path)
    if path.name not in header.files:
        raise InputError(
            f"the file was renamed: it was written as {header.files[0]}, and MindSpore reads it under that name only",
            where=path,
            fix=f"rename it and its .db back to {header.files[0]}; to move it, move both files into another folder",
        )
    for name in header.files:
        member = path.with_name(name)
        if not member.exists():
            raise InputError("a file of the set is missing", where=member, fix="copy all files of the set")
        if not index_path(member).exists():
            raise InputError(
                "the index of the MindRecord file is missing",
                where=index_path(member),
                fix="copy it from where the file came from",
            )
        wanted = _parsed(member).size
        if member.stat().st_size < wanted:
            raise InputError(
                f"the file is cut off: it has {member.stat().st_size:,} of {wanted:,} bytes",
                where=member,
                fix="copy it again, or make it again with 'spark13b preprocess'",
            )
    return header


def rename(path: Path, name: str, names: list[str]) -> None:
    """Let a file of one shard, and its index, say that it is `name` of the set `names`; the caller moves them.

    A reader that is given one file of the set reads all of them, in this order: the files that MindSpore's own writer
    makes of several shards say the same of themselves.
    """
    number = names.index(name)
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["shard_addresses"], header["shard_id"] = names, number
        for page in header["page"]:
            page["shard_id"] = number
        data = json.dumps(header, separators=(",", ":")).encode()
        if len(data) + 8 > header["header_size"]:
            raise JobError("the header is too small for so many shards", where=path, fix="use a larger --shard-size")
        stream.seek(0)
        stream.write(len(data).to_bytes(8, "little") + data + bytes(max(0, length - len(data))))
    with closing(sqlite3.connect(index_path(path))) as index, index:
        index.execute("UPDATE SHARD_NAME SET NAME = ?", (name,))


def _parsed(path: Path) -> Header:
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= _LONGEST_HEADER:
                raise ValueError("no header")
            return _header(json.loads(stream.read(length)))
    except (ValueError, KeyError, TypeError, IndexError):
        raise InputError(
            "this is not a MindRecord file", where=path, fix="make one with 'spark13b preprocess'"
        ) from None


def _header(header: dict[str, Any]) -> Header:
    (schema,) = header["schema"]
    pages = header["page"]
    size = header["header_size"]
    if pages:
        last = max(pages, key=lambda page: page["page_id"])
        size += last["page_id"] * header["page_size"] + last["page_size"]
    return Header(
        {name: column["type"] for name, column in schema["schema"].items()},
        list(header["shard_addresses"]),
        size,
    )
