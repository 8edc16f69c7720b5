"""What becomes of an instruction example that is longer than a row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from spark13b.data.encoding import Counts, Examples, Mask, Tokens
from spark13b.data.ledger import Ledger
from spark13b.data.place import Place

Overlong = Literal["error", "truncate", "split", "drop"]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Tokens of which each piece stays together in a row: `ids` (n,), `mask` (n,), and the pieces' `lengths` (k,)."""

    ids: Tokens
    mask: Mask
    lengths: Counts

    def __len__(self) -> int:
        return len(self.lengths)


def no_pieces() -> Pieces:
    """None at all."""
    return Pieces(np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.int64))


def joined(parts: Iterable[Pieces]) -> Pieces:
    """All of them, in order."""
    kept = [part for part in parts if len(part)]
    if len(kept) == 1:
        return kept[0]
    if not kept:
        return no_pieces()
    return Pieces(
        np.concatenate([part.ids for part in kept]),
        np.concatenate([part.mask for part in kept]),
        np.concatenate([part.lengths for part in kept]),
    )


def fitted(examples: Examples, path: Path, row_length: int, overlong: Overlong, ledger: Ledger) -> Pieces:
    """Each example of `path` as one piece of at most `row_length` tokens, a longer one as `overlong` says.

    - `error`: InputError with file, line and number of tokens.
    - `truncate`: the end goes, and `<end>` with it: the answer does not end there. An example of which only prompt
      would remain teaches nothing and is dropped.
    - `split`: pieces that overlap by one token, which is learned in the first of them and context in the second: a
      model learns a token only where it sees the one before. So each token of the answer is learned exactly once.
    - `drop`: it goes.

    The ledger is told what became of each.
    """
    long = np.flatnonzero(examples.lengths > row_length)
    ledger.kept += len(examples) - len(long)
    ledger.packed += len(examples) - len(long)
    parts: list[Pieces] = []
    ends = np.cumsum(examples.lengths)
    done = 0  # examples

    def short_until(number: int) -> None:
        start, end = (int(ends[at - 1]) if at else 0 for at in (done, number))
        parts.append(Pieces(examples.ids[start:end], examples.mask[start:end], examples.lengths[done:number]))

    for number in map(int, long):
        short_until(number)
        done = number + 1
        end, length = int(ends[number]), int(examples.lengths[number])
        one = Pieces(examples.ids[end - length : end], examples.mask[end - length : end], np.array([length]))
        if overlong == "error":
            prompt = int((one.mask == 0).sum())
            raise Place(path, int(examples.lines[number])).error(
                f"the example has {length:,} tokens ({prompt:,} of them the prompt), a row holds {row_length:,}",
                f"--seq-length {length - 1} or more, or --overlong truncate, split or drop",
            )
        if overlong == "split":
            ledger.split += 1
            ledger.kept += 1
            parts.append(_split(one, row_length))
        elif overlong == "truncate" and one.mask[:row_length].any():
            ledger.truncated += 1
            ledger.kept += 1
            ledger.lost_tokens += length - row_length
            parts.append(Pieces(one.ids[:row_length], one.mask[:row_length], np.array([row_length])))
        else:
            ledger.dropped += 1
            ledger.lost_tokens += length
    short_until(len(examples))
    pieces = joined(parts)
    ledger.tokens += len(pieces.ids)
    return pieces


def _split(one: Pieces, row_length: int) -> Pieces:
    step = row_length - 1  # one token of each further piece is context
    starts = range(0, len(one.ids) - 1, step)
    parts = []
    for start in starts:
        mask = one.mask[start : start + row_length].copy()
        mask[0] &= not start
        ids = one.ids[start : start + row_length]
        parts.append(Pieces(ids, mask, np.array([len(ids)])))
    return joined(parts)
