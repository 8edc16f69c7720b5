"""The rows that a run sees: whether they fit the model, and this process's part of every step."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spark13b.config.preset import Preset
from spark13b.data.mindrecord import RowInfo, open_rows, read_manifest, row_info
from spark13b.errors import InputError


@dataclass(frozen=True)
class StepRows:
    """The rows of a step: `numbers` of all of them in the file, tokens and masks of this process's, (R, T+1)."""

    numbers: np.ndarray
    ids: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class RowSource:
    """The rows of `path`; of every step this process reads `part`, all when it is None."""

    path: Path
    vocab_size: int
    part: slice | None = None

    def steps(self, stretches: Iterable[np.ndarray]) -> Generator[StepRows, None, None]:
        """Yield the rows of each step; `stretches` are row numbers (steps, rows of a step), as of `steps_of_order`.

        Raises InputError for a token that the model does not know. Closing the generator frees its threads.
        """
        for stretch in stretches:
            own = stretch[:, self.part or slice(None)]
            with closing(open_rows(self.path, own.shape[1], order=own.ravel())) as batches:  # type: ignore[type-var]
                for numbers, (ids, mask) in zip(stretch, batches, strict=True):
                    self._check(ids)
                    yield StepRows(numbers, ids, mask)

    def _check(self, ids: np.ndarray) -> None:
        smallest, largest = int(ids.min()), int(ids.max())
        if smallest < 0 or largest >= self.vocab_size:
            raise InputError(
                f"a row holds token id {smallest if smallest < 0 else largest}, the model knows 0 to "
                f"{self.vocab_size - 1}",
                where=self.path,
                fix="train with the vocabulary size of the tokenizer that made the rows (--set model.vocab_size=...)",
            )


def check_rows(preset: Preset, path: Path) -> RowInfo:
    """Find what keeps the model from reading the rows of a file. Raises InputError."""
    info = row_info(path)
    manifest = read_manifest(path)
    if manifest is not None and manifest.tokenizer.vocab_size > preset.model.vocab_size:
        size = manifest.tokenizer.vocab_size
        raise InputError(
            f"the tokenizer of the rows has {size} tokens, the model knows {preset.model.vocab_size}",
            where="model.vocab_size",
            fix=f"add --set model.vocab_size={size}",
        )
    tokens = info.row_length - 1
    if tokens > preset.model.seq_length:
        raise InputError(
            f"the rows hold {tokens} tokens, the model's context {preset.model.seq_length}",
            where="model.seq_length",
            fix=f"add --set model.seq_length={tokens}, or preprocess with --seq-length {preset.model.seq_length}",
        )
    return info
