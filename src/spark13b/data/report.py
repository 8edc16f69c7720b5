"""The report that ends a data job: `FILE.report.json`."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from spark13b.data.ledger import Ledger
from spark13b.data.manifest import InputEntry, Kind


class Report(BaseModel):
    """What was read, and what became of it."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    output: list[str]  # the MindRecord files
    ledger: Ledger
    formats: dict[str, int]  # records of each format
    lengths: dict[str, int]  # examples or documents by length in tokens, "32-63": how many
    characters_per_token: float
    bad_records: str | None = None  # the file that lists them
    repeated: list[list[str]] = []  # input files of the same bytes, all of whose records are in the rows
    held_out: list[str] = []  # the MindRecord files of the rows for evaluation
    held_out_ledger: Ledger | None = None


def repeated(inputs: Iterable[InputEntry]) -> list[list[str]]:
    """The paths of files that hold the same bytes, or are one file that was read more than once."""
    paths: dict[str, list[str]] = {}
    for entry in inputs:
        paths.setdefault(entry.sha256, []).append(entry.path)
    return [same for same in paths.values() if len(same) > 1]


def length_ranges(counts: dict[int, int]) -> dict[str, int]:
    """Counts by the bits of a length as counts by range, without gaps."""
    if not counts:
        return {}
    ranges = range(min(counts), max(counts) + 1)
    return {_range(bits): counts.get(bits, 0) for bits in ranges}


def _range(bits: int) -> str:
    low, high = 1 << (bits - 1), (1 << bits) - 1
    return f"{low}-{high}" if high > low else str(low)
