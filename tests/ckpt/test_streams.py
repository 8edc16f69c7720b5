"""Joining and cutting while bytes go by equals doing it on whole arrays, however the bytes are cut into pieces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark13b.ckpt import Checkpoint, TensorInfo, open_checkpoint, write_checkpoint
from spark13b.ckpt.reading_ahead import pieces_ahead
from spark13b.ckpt.streams import Workspace, copies, side_by_side
from spark13b.errors import InputError


def _cut(data: bytes, sizes: list[int]) -> Iterator[memoryview]:
    """`data` in pieces of these sizes, over and over."""
    at, number = 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        yield memoryview(data)[at : at + size]
        at, number = at + size, number + 1


@settings(max_examples=200, deadline=None)
@given(
    parts=st.integers(1, 4),
    rows=st.integers(0, 30),
    row_bytes=st.integers(1, 9),
    sizes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=4, max_size=4),
    piece=st.integers(1, 64),
)
def test_matrices_beside_each_other(parts: int, rows: int, row_bytes: int, sizes: list, piece: int) -> None:
    matrices = np.random.default_rng(0).integers(0, 256, (parts, rows, row_bytes), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spark13b.ckpt.streams.PIECE", piece)
        streams = [_cut(matrix.tobytes(), cut) for matrix, cut in zip(matrices, sizes, strict=False)]
        joined = b"".join(side_by_side(streams, row_bytes))
    assert joined == np.concatenate(list(matrices), axis=1).tobytes()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=3), st.integers(1, 50))
def test_copies_of_any_layout(shape: list[int], piece: int) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spark13b.ckpt.streams.PIECE", piece)
        assert b"".join(copies(array)) == array.tobytes()


def test_a_workspace_holds_the_last_tensor_and_grows(tmp_path: Path) -> None:
    tensors = {"small": np.arange(3.0), "large": np.arange(500.0), "again": np.arange(7)}
    write_checkpoint(tmp_path / "x.ckpt", tensors)
    workspace = Workspace()
    with open_checkpoint(tmp_path / "x.ckpt") as source:
        for name in ("small", "large", "large", "again", "small"):
            assert np.array_equal(workspace.load(source, name), tensors[name])


class _Slow(Checkpoint):
    """Yields pieces, and may break."""

    def __init__(self, tensors: int, breaks_at: int | None = None) -> None:
        infos = {f"t{n}": TensorInfo(f"t{n}", (4,), np.dtype(np.uint8)) for n in range(tensors)}
        super().__init__(Path("x"), "ckpt", infos)
        self.read_so_far, self._breaks_at = 0, breaks_at

    def read(self, name: str) -> np.ndarray:
        return np.frombuffer(b"".join(self.pieces(name)), np.uint8)

    def pieces(self, name: str) -> Iterator[memoryview]:
        number = int(name[1:])
        if number == self._breaks_at:
            raise InputError("broken")
        self.read_so_far += 1
        yield memoryview(bytes([number] * 4))


def test_pieces_come_in_order_and_errors_come_through() -> None:
    got = [(info.name, b"".join(pieces)) for info, pieces in pieces_ahead(_Slow(50))]
    assert got == [(f"t{n}", bytes([n] * 4)) for n in range(50)]
    with pytest.raises(InputError, match="broken"):
        for _info, pieces in pieces_ahead(_Slow(50, breaks_at=30)):
            list(pieces)


def test_a_caller_that_stops_stops_the_reader_too() -> None:
    source = _Slow(1000)
    before = set(threading.enumerate())
    ahead = pieces_ahead(source)
    next(ahead)
    ahead.close()
    assert not [one for one in set(threading.enumerate()) - before if one.name == "read ahead"]
    assert source.read_so_far < 30
