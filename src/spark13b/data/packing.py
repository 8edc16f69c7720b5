"""Filling rows with tokens, in arrays alone: no files, no text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from spark13b.data.encoding import Tokens
from spark13b.data.overlong import Piece

_BLOCK_TOKENS = 1 << 22  # rows are handed on in blocks of about this many tokens: 128 rows of 32 Ki
_BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows: `input_ids` and `loss_mask`, both (N, row_length) int32."""

    input_ids: Tokens
    loss_mask: Tokens


def cut(chunks: Iterable[Tokens], row_length: int, pad_id: int) -> Iterator[Rows]:
    """Cut a stream of tokens, given in chunks (n,), into rows; the mask is 1 on tokens and 0 on padding.

    Only the last row can be padded, with `pad_id`. No token is lost: the rows without padding, one after the other,
    are the stream.
    """
    block = _Block(row_length, pad_id)
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            part = chunk[start : start + block.room]
            block.add(part, learned_from=0)
            start += len(part)
            if not block.room:
                yield block.rows()
                block = _Block(row_length, pad_id)
    if block.rows_begun:
        yield block.rows()


def pack(pieces: Iterable[Piece], row_length: int, pad_id: int) -> Iterator[Rows]:
    """Fill rows with pieces greedily and in order, as the original does: a piece that does not fit begins a new row.

    What stays free at the end of a row is padded with `pad_id`, mask 0. No piece may be longer than a row.
    """
    block = _Block(row_length, pad_id)
    for piece in pieces:
        if len(piece.ids) > block.room_in_row:
            block.end_row()
        if not block.room:
            yield block.rows()
            block = _Block(row_length, pad_id)
        block.add(piece.ids, piece.learned_from)
    if block.rows_begun:
        yield block.rows()


class _Block:
    """A block of rows that is filled from its start."""

    def __init__(self, row_length: int, pad_id: int) -> None:
        self._row_length = row_length
        rows = max(1, min(_BLOCK_ROWS, _BLOCK_TOKENS // row_length))
        self._ids = np.full(rows * row_length, pad_id, np.int32)
        self._mask = np.zeros(rows * row_length, np.int32)
        self._at = 0

    @property
    def room(self) -> int:
        """Tokens that the block can still take."""
        return len(self._ids) - self._at

    @property
    def room_in_row(self) -> int:
        """Tokens that the row that is being filled can still take; 0 when none is begun."""
        return -self._at % self._row_length

    @property
    def rows_begun(self) -> int:
        return -(-self._at // self._row_length)

    def end_row(self) -> None:
        """Leave the rest of the row that is being filled as padding."""
        self._at += self.room_in_row

    def add(self, ids: Tokens, learned_from: int) -> None:
        end = self._at + len(ids)
        self._ids[self._at : end] = ids
        self._mask[self._at + learned_from : end] = 1
        self._at = end

    def rows(self) -> Rows:
        """The rows that were begun."""
        shape = (self.rows_begun, self._row_length)
        size = shape[0] * shape[1]
        return Rows(self._ids[:size].reshape(shape), self._mask[:size].reshape(shape))
