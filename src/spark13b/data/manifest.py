"""The manifest `FILE.json` beside a MindRecord FILE: how it was made, and of what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from spark13b.data.ledger import Ledger
from spark13b.errors import InputError, nearest

FORMAT_VERSION: Literal[1] = 1
SUFFIX = ".json"
REPORT_SUFFIX, ERRORS_SUFFIX = ".report.json", ".errors.jsonl"
WORK_SUFFIX = ".partial"  # of the folder of a job that is not done

Kind = Literal["pretrain", "sft"]


class TokenizerEntry(BaseModel):
    """The tokenizer whose ids the rows hold; `sha256` is its fingerprint, the hash of the model file."""

    model_config = ConfigDict(extra="forbid")

    path: str  # absolute
    sha256: str
    vocab_size: int
    end_id: int
    pad_id: int


class InputEntry(BaseModel):
    """A file that was read: its absolute path, bytes and hash."""

    model_config = ConfigDict(extra="forbid")

    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """How the rows were made. `options` are those of the command that change the rows."""

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = FORMAT_VERSION
    kind: Kind
    seq_length: int  # a row holds one token more
    columns: list[str]
    rows: int
    tokenizer: TokenizerEntry
    options: dict[str, str | int | float | bool | dict[str, str] | None]
    inputs: list[InputEntry]
    ledger: Ledger
    shards: list[int] = []  # rows of each file, FILE0, FILE1, ...; empty: they are all in FILE


def manifest_path(rows_file: Path) -> Path:
    """Where the manifest of a MindRecord file is."""
    return rows_file.with_name(rows_file.name + SUFFIX)


def is_ours(path: Path) -> bool:
    """Whether a file is no data, but what `preprocess` wrote: beside rows, whose index tells, or on the way to them."""
    bases = {path.name.removesuffix(suffix) for suffix in (SUFFIX, REPORT_SUFFIX, ERRORS_SUFFIX)} - {path.name}
    beside = any(path.with_name(base + index).is_file() for base in bases for index in (".db", "0.db"))
    return beside or (path.parent.suffix == WORK_SUFFIX and (path.parent / "job.json").is_file())


def files_of(rows_file: Path, shards: int) -> list[Path]:
    """The MindRecord files of an output: itself, or FILE0, FILE1, ... as MindSpore names several."""
    return [rows_file] if shards < 2 else [rows_file.with_name(f"{rows_file.name}{number}") for number in range(shards)]


def first_file(rows_file: Path) -> Path:
    """The file that stands for all of an output: itself, or the first of several."""
    if rows_file.exists():  # also a folder without a name, such as `.`
        return rows_file
    first = rows_file.with_name(rows_file.name + "0")
    return first if first.exists() else rows_file


def whole_output(rows_file: Path) -> Path:
    """The output that a file belongs to: of FILE2 it is FILE, if that has a manifest of several files.

    MindSpore, too, reads all of them when one is named. A link is the file that it leads to, as it is for `row_info`.
    """
    if rows_file.is_symlink():
        rows_file = rows_file.resolve()
    shard = re.fullmatch(r"(.+?)\d+", rows_file.name)
    if shard is None or manifest_path(rows_file).exists():
        return rows_file
    whole = rows_file.with_name(shard[1])
    return whole if manifest_path(whole).is_file() and not whole.exists() else rows_file


def read_manifest(rows_file: str | Path) -> Manifest | None:
    """The manifest of a MindRecord file, or of the several it is one of; None: none (the original's).

    Raises InputError when there is one that cannot be understood.
    """
    path = manifest_path(whole_output(Path(rows_file)))
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(
            f"this is no manifest of version {FORMAT_VERSION}: {_first(error)}",
            where=path,
            fix="make the rows again with 'spark13b preprocess', or move the manifest away to read them without it",
        ) from None


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = nearest(key, Manifest.model_fields)
        return f"there is no key '{key}'" + (f", did you mean '{near}'?" if near else "")
    return f"{key}: {problem['msg']}" if key else problem["msg"]
