"""The ledger that ends every data job: what was read and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import ConfigDict


@dataclass
class Ledger:
    """Counts of one job. It is also part of the manifest's format.

    `read` = `kept` + `dropped` + `duplicates` + `bad` + `held_out`, and `kept` = `packed` + `truncated` + `split`: each
    record has one fate.
    """

    read: int = 0
    kept: int = 0
    packed: int = 0  # whole, as they were written; pretraining documents always are
    truncated: int = 0  # lost their end
    split: int = 0  # cut over several rows
    dropped: int = 0  # longer than a row, in none
    duplicates: int = 0  # said the same as one before
    bad: int = 0  # could not be used, and was skipped
    held_out: int = 0  # are in the rows for evaluation
    empty: int = 0  # read without a text or an answer: they teach `<end>` alone
    characters: int = 0  # of cleaned text that was read
    tokens: int = 0  # in the rows, without padding
    learned_tokens: int = 0  # of these, with loss mask 1
    lost_tokens: int = 0  # of truncated and dropped examples
    rows: int = 0
    fill_rate: float = 0.0  # the share of the rows' positions that holds tokens, 0 to 1
    ignored_fields: dict[str, int] = field(default_factory=dict)  # unused fields, and how many records have them

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def close(self, row_length: int) -> None:
        """Work out the fill rate, once all rows of `row_length` positions are counted."""
        self.fill_rate = round(self.tokens / (self.rows * row_length), 6) if self.rows else 0.0
