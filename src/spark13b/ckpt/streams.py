"""Join and cut tensors while their bytes go by, and hold one whole tensor at a time where that cannot be done.

A matrix is rows of bytes here. `side_by_side` joins matrices along their columns; rows in turn, as torch keeps `fc0`
and `fc1`, are the same thing: two rows beside each other are two rows after each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from spark13b.ckpt.dtypes import PIECE, Array, as_bytes
from spark13b.ckpt.tensors import Checkpoint


def side_by_side(parts: Sequence[Iterable[memoryview]], row_bytes: int) -> Iterator[memoryview]:
    """The first row of every part, the second row of every part, ...; a row of one part has `row_bytes` bytes."""
    rows = max(1, PIECE // (row_bytes * len(parts)))
    for blocks in zip(*(blocks_of(part, rows * row_bytes) for part in parts), strict=True):
        matrices = [np.frombuffer(block, np.uint8).reshape(-1, row_bytes) for block in blocks]
        yield as_bytes(np.concatenate(matrices, axis=1))


def read_into(source: Checkpoint, name: str, array: Array) -> None:
    """Fill a contiguous array of the tensor's shape, cast to its type, a piece of the file at a time."""
    flat, done, dtype = array.reshape(-1), 0, source.infos[name].dtype
    for block in blocks_of(source.pieces(name), PIECE):
        values = np.frombuffer(block, dtype)
        flat[done : done + values.size] = values
        done += values.size


def copies(array: Array) -> Iterator[memoryview]:
    """The bytes of an array of any layout in pieces that outlive it."""
    if array.ndim == 0 or not array.size:
        yield as_bytes(array.copy())
        return
    rows = max(1, PIECE * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        yield as_bytes(array[start : start + rows].copy())


class Workspace:
    """Memory for one whole tensor that is used again for the next: fresh memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._holds: tuple[int, str] | None = None

    def load(self, source: Checkpoint, name: str) -> Array:
        """The tensor `name`, valid until another is loaded. Loading it again at once costs nothing."""
        return self.fill(source, name, source.pieces(name))

    def fill(self, source: Checkpoint, name: str, pieces: Iterable[memoryview]) -> Array:
        """The tensor `name` of `source`, whose bytes are `pieces`."""
        info = source.infos[name]
        if self._memory.nbytes < info.nbytes:
            self._memory = np.empty(0, np.uint8)  # let go of the old before the new is taken
            self._memory = np.empty(info.nbytes, np.uint8)
        if self._holds != (id(source), name):
            self._holds, at = None, 0
            for piece in pieces:
                self._memory[at : at + len(piece)] = piece
                at += len(piece)
            self._holds = (id(source), name)
        return self._memory[: info.nbytes].view(info.dtype).reshape(info.shape)


def blocks_of(pieces: Iterable[memoryview], size: int) -> Iterator[bytes | memoryview]:
    """The same bytes in blocks of `size`; the last one may be shorter."""
    kept = b""
    for piece in pieces:
        start = 0
        if kept:
            start = size - len(kept)
            kept += piece[:start]
            if len(kept) < size:
                continue
            yield kept
        whole = len(piece) - (len(piece) - start) % size
        for at in range(start, whole, size):
            yield piece[at : at + size]
        kept = bytes(piece[whole:])
    if kept:
        yield kept
