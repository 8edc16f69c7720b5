"""Filling rows with tokens, in arrays alone: no files, no text.

A packer is given pieces and hands on the rows that are full; what it holds back is `pending`, which a new packer can
be given to go on from there.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from spark13b.data.encoding import Counts, Tokens
from spark13b.data.overlong import Pieces, joined, no_pieces

Packing = Literal["greedy", "best-fit"]

_POOL_TOKENS = 1 << 20  # of best-fit: so much is looked at together, and at least
_POOL_ROWS = 8  # rows of it
_FULL = 0.998  # of a row: a row as full as this is handed on


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows, (N, row_length) int32: `input_ids`, `loss_mask`, and `document_ids` where they are asked for.

    `document_ids` counts the documents or examples of a row from 1; 0 is padding.
    """

    input_ids: Tokens
    loss_mask: Tokens
    document_ids: Tokens | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Shape:
    """What rows look like."""

    row_length: int
    pad_id: int
    documents: bool = False


class Packer(Protocol):
    """Fills rows."""

    pending: Pieces  # what is in no row yet

    def add(self, pieces: Pieces) -> Rows | None:
        """The rows that `pieces` fill, or None."""

    def finish(self) -> Rows | None:
        """The last rows, padded; None when nothing is pending."""


class Cutter:
    """Cuts a stream of tokens into rows; only the last one can be padded. No token is lost."""

    def __init__(self, shape: Shape) -> None:
        self._shape, self.pending = shape, no_pieces()

    def add(self, pieces: Pieces) -> Rows | None:
        all_ = joined((self.pending, pieces))
        size = len(all_.ids) // self._shape.row_length * self._shape.row_length
        done, self.pending = _cut_at(all_, size)
        return self._rows(done) if size else None

    def finish(self) -> Rows | None:
        done, self.pending = self.pending, no_pieces()
        return self._rows(done) if len(done.ids) else None

    def _rows(self, pieces: Pieces) -> Rows:
        length = self._shape.row_length
        count = -(-len(pieces.ids) // length)
        used = np.full(count, length, np.int64)
        used[-1] = len(pieces.ids) - (count - 1) * length
        numbers = np.repeat(np.arange(len(pieces)), pieces.lengths) if self._shape.documents else None
        return _rows(self._shape, pieces, numbers, used)


class GreedyPacker:
    """Whole pieces in order, as the original does: a piece that does not fit begins a new row."""

    def __init__(self, shape: Shape) -> None:
        self._shape, self.pending = shape, no_pieces()

    def add(self, pieces: Pieces) -> Rows | None:
        all_ = joined((self.pending, pieces))
        ends = np.cumsum(all_.lengths)
        firsts = [0]  # pieces that begin a row
        start = 0  # tokens before it
        while True:
            following = int(np.searchsorted(ends, start + self._shape.row_length, side="right"))
            if following >= len(all_):
                break
            start = int(ends[following - 1])
            firsts.append(following)
        done, self.pending = _pieces_until(all_, firsts[-1])
        return _whole_rows(self._shape, done, firsts) if len(done) else None

    def finish(self) -> Rows | None:
        done, self.pending = self.pending, no_pieces()
        return _whole_rows(self._shape, done, [0, len(done)]) if len(done) else None


class BestFitPacker:
    """Whole pieces, the longest first, each where it leaves the least room: fuller rows, in another order.

    A pool of pieces is looked at together; rows that are full are handed on, the pieces of the others stay in the pool.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape, self.pending = shape, no_pieces()

    def add(self, pieces: Pieces) -> Rows | None:
        self.pending = joined((self.pending, pieces))
        if len(self.pending.ids) < max(_POOL_TOKENS, _POOL_ROWS * self._shape.row_length):
            return None
        rows = _best_fit(self.pending.lengths, self._shape.row_length)
        rows.sort(key=lambda row: -row.used)  # stable: equal rows stay in order
        full = sum(row.used >= _FULL * self._shape.row_length for row in rows)
        done = rows[: max(full, len(rows) // 2)]
        left = np.ones(len(self.pending), np.bool_)
        for row in done:
            left[row.pieces] = False
        made, rest = self._assembled(done), np.flatnonzero(left)
        self.pending = _gathered(self.pending, rest)
        return made

    def finish(self) -> Rows | None:
        if not len(self.pending):
            return None
        made = self._assembled(_best_fit(self.pending.lengths, self._shape.row_length))
        self.pending = no_pieces()
        return made

    def _assembled(self, rows: list[_Row]) -> Rows:
        order = [piece for row in rows for piece in row.pieces]
        firsts = np.concatenate(([0], np.cumsum([len(row.pieces) for row in rows])))
        return _whole_rows(self._shape, _gathered(self.pending, np.array(order)), firsts.tolist())


def packer(packing: Packing | None, shape: Shape) -> Packer:
    """The packer of that name; None cuts a stream."""
    if packing is None:
        return Cutter(shape)
    return GreedyPacker(shape) if packing == "greedy" else BestFitPacker(shape)


@dataclass
class _Row:
    pieces: list[int]
    used: int


def _best_fit(lengths: Counts, row_length: int) -> list[_Row]:
    """Best-fit decreasing: which pieces share a row."""
    rows: list[_Row] = []
    room: list[tuple[int, int]] = []  # (what is free, number of the row), sorted
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        at = bisect_left(room, (length, -1))
        if at == len(room):
            rows.append(_Row([piece], length))
            free, number = row_length, len(rows) - 1
        else:
            free, number = room.pop(at)
            rows[number].pieces.append(piece)
            rows[number].used += length
        if free > length:
            insort(room, (free - length, number))
    for row in rows:
        row.pieces.sort()
    return rows


def _gathered(pieces: Pieces, chosen: Counts) -> Pieces:
    """Some pieces, in the order given."""
    ends = np.cumsum(pieces.lengths)
    starts = ends - pieces.lengths
    where = [slice(int(starts[one]), int(ends[one])) for one in chosen]
    if not where:
        return no_pieces()
    ids, mask = (np.concatenate([values[part] for part in where]) for values in (pieces.ids, pieces.mask))
    return Pieces(ids, mask, pieces.lengths[chosen])


def _cut_at(pieces: Pieces, size: int) -> tuple[Pieces, Pieces]:
    """What is before token `size`, and the rest; the piece that is cut is one in both."""
    ends = np.cumsum(pieces.lengths)
    whole = int(np.searchsorted(ends, size, side="right"))
    before = size - (int(ends[whole - 1]) if whole else 0)  # tokens of the piece that is cut
    first, rest = pieces.lengths[:whole], pieces.lengths[whole:]
    if before:
        first, rest = np.append(first, before), np.concatenate(([rest[0] - before], rest[1:]))
    return (
        Pieces(pieces.ids[:size], pieces.mask[:size], first),
        Pieces(pieces.ids[size:], pieces.mask[size:], rest),
    )


def _pieces_until(pieces: Pieces, count: int) -> tuple[Pieces, Pieces]:
    """The first `count` pieces, and the others."""
    size = int(pieces.lengths[:count].sum())
    return (
        Pieces(pieces.ids[:size], pieces.mask[:size], pieces.lengths[:count]),
        Pieces(pieces.ids[size:], pieces.mask[size:], pieces.lengths[count:]),
    )


def _whole_rows(shape: Shape, pieces: Pieces, firsts: list[int]) -> Rows:
    """Rows of which row r holds the pieces from `firsts[r]` to `firsts[r + 1]`."""
    used = np.add.reduceat(pieces.lengths, firsts[:-1])
    numbers = np.repeat(np.arange(len(pieces)), pieces.lengths) if shape.documents else None
    return _rows(shape, pieces, numbers, used)


def _rows(shape: Shape, pieces: Pieces, numbers: Counts | None, used: Counts) -> Rows:
    """Rows of which row r takes the next `used[r]` tokens; `numbers` (n,): which document each token is of."""
    length, count = shape.row_length, len(used)
    if int(used.sum()) == count * length:
        ids, mask = pieces.ids.reshape(count, length), pieces.mask.reshape(count, length).astype(np.int32)
        where = None
    else:
        where = np.arange(length) < used[:, None]
        ids, mask = np.full((count, length), shape.pad_id, np.int32), np.zeros((count, length), np.int32)
        ids[where], mask[where] = pieces.ids, pieces.mask
    if numbers is None:
        return Rows(ids, mask)
    starts = np.cumsum(used) - used
    within = (numbers - np.repeat(numbers[starts], used) + 1).astype(np.int32)
    documents = np.zeros((count, length), np.int32)
    documents[where if where is not None else np.ones((count, length), np.bool_)] = within
    return Rows(ids, mask, documents)
