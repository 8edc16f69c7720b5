"""Looking into training rows, and checking all of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spark13b.data.manifest import Manifest, read_manifest
from spark13b.data.mindrecord import open_rows, row_info
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError
from spark13b.progress import SILENT, Progress

_BATCH_TOKENS = 1 << 20


@dataclass(frozen=True)
class Part:
    """Text whose tokens are all learned, or none of them."""

    text: str
    learned: bool


@dataclass(frozen=True)
class ShownRow:
    """One row as text."""

    number: int
    tokens: int
    learned: int
    padding: int
    parts: list[Part]


@dataclass(frozen=True)
class Look:
    """What a file holds."""

    rows: int
    row_length: int
    columns: tuple[str, ...]
    kind: str | None
    files: int
    shown: list[ShownRow]


@dataclass(frozen=True)
class Verified:
    """What a check of all rows has counted."""

    rows: int
    row_length: int
    tokens: int
    learned_tokens: int
    fill_rate: float
    lowest_id: int
    highest_id: int
    vocab_size: int
    manifest: bool


def look_into(file: Path, rows: range, tokenizer: Path | None = None) -> Look:
    """Some rows of a file as text. Raises InputError for rows or a tokenizer that are not there."""
    info, manifest = row_info(file), read_manifest(file)
    if not rows or rows[-1] >= info.rows or rows[0] < 0:
        raise InputError(
            f"the file has rows 0 to {info.rows - 1}", where=file, fix="name some of these, --rows 0:3 for example"
        )
    with_text = _tokenizer(file, manifest, tokenizer)
    shown = []
    for number, (ids, mask) in zip(rows, open_rows(file, 1, order=rows), strict=True):
        shown.append(_shown(number, ids[0], mask[0], with_text))
    files = max(1, len(manifest.shards)) if manifest is not None else 1
    return Look(info.rows, info.row_length, info.columns, None if manifest is None else manifest.kind, files, shown)


def verify_rows(file: Path, tokenizer: Path | None = None, progress: Progress = SILENT) -> Verified:
    """Read all rows: lengths, masks of 0 and 1, nothing learned of padding, ids that the tokenizer knows.

    Raises InputError that names the first row with a fault, or what disagrees with the manifest.
    """
    info, manifest = row_info(file), read_manifest(file)
    known = _tokenizer(file, manifest, tokenizer)
    if manifest is not None and known.fingerprint != manifest.tokenizer.sha256:
        raise InputError(
            "the rows were made with another tokenizer", where=known.where, fix=f"use {manifest.tokenizer.path}"
        )
    tokens = learned = number = 0
    lowest, highest = 1 << 31, -1
    batch = max(1, _BATCH_TOKENS // info.row_length)
    with progress.track("verify", info.rows, "rows") as meter:
        for ids, mask in open_rows(file, batch):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= known.vocab_size:
                _fail(file, number, (ids < 0) | (ids >= known.vocab_size), f"an id outside 0 to {known.vocab_size - 1}")
            _fail(file, number, (mask != 0) & (mask != 1), "a mask that is neither 0 nor 1")
            used = _used(ids, mask, known.pad_id)
            tokens += int(used.sum())
            learned += int(mask.sum())
            lowest, highest = min(lowest, low), max(highest, high)
            number += len(ids)
            meter.advance(len(ids))
    if manifest is not None:
        _agree(file, "rows", manifest.rows, number)
        _agree(file, "learned tokens", manifest.ledger.learned_tokens, learned)
        _agree(file, "tokens", manifest.ledger.tokens, tokens)
    return Verified(
        rows=number,
        row_length=info.row_length,
        tokens=tokens,
        learned_tokens=learned,
        fill_rate=tokens / (number * info.row_length),
        lowest_id=lowest,
        highest_id=highest,
        vocab_size=known.vocab_size,
        manifest=manifest is not None,
    )


def _used(ids: np.ndarray, mask: np.ndarray, pad_id: int) -> np.ndarray:  # type: ignore[type-arg]
    """The tokens of each row (N,) before the padding at its end."""
    used = (ids != pad_id) | (mask != 0)
    return np.where(used.any(1), ids.shape[1] - used[:, ::-1].argmax(1), 0)


def _fail(file: Path, first: int, wrong: np.ndarray, what: str) -> None:  # type: ignore[type-arg]
    if wrong.any():
        row, column = (int(at) for at in np.argwhere(wrong)[0])
        raise InputError(
            f"row {first + row} has {what}, at position {column}",
            where=file,
            fix="make the file again with 'spark13b preprocess'",
        )


def _agree(file: Path, what: str, said: int, found: int) -> None:
    if said != found:
        raise InputError(
            f"the manifest says {said:,} {what}, there are {found:,}",
            where=file,
            fix="make the file again with 'spark13b preprocess'",
        )


def _tokenizer(file: Path, manifest: Manifest | None, given: Path | None) -> SparkTokenizer:
    if given is None and manifest is None:
        raise InputError("the file has no manifest that names its tokenizer", where=file, fix="add --tokenizer DIR")
    return SparkTokenizer.load(given if given is not None else Path(manifest.tokenizer.path))  # type: ignore[union-attr]


def _shown(number: int, ids: np.ndarray, mask: np.ndarray, tokenizer: SparkTokenizer) -> ShownRow:  # type: ignore[type-arg]
    used = int(_used(ids[None], mask[None], tokenizer.pad_id)[0])
    borders = [0, *(np.flatnonzero(np.diff(mask[:used])) + 1).tolist(), used]
    parts = [
        Part(tokenizer.decode(ids[start:end].tolist(), skip_special=False), bool(mask[start]))
        for start, end in itertools.pairwise(borders)
        if end > start
    ]
    return ShownRow(number, used, int(mask.sum()), len(ids) - used, parts)
