"""Dropout whose mask is a function of seed, step, place and nothing else.

So a run that goes on has the same masks as one that never stopped, recomputed layers have those of their first pass,
and a batch has them however it is divided over processes and accumulated.
"""

from __future__ import annotations

import hashlib
from typing import Any

import mindspore
import numpy as np
from mindspore import nn, ops

_ROW, _COLUMN, _MIX = 0x27D4EB2D, 0x165667B1, 0x7FEB352D  # odd, with bits all over: Knuth's multiplicative hashing


class Dropout(nn.Cell):
    """Set a share `rate` of x (N, C) to 0 and scale the rest up. `place` names the layer.

    `first_row`, `first_column`: of this process's part, in parts of x's own size.
    """

    def __init__(self, rate: float, place: str, first_row: int = 0, first_column: int = 0) -> None:
        super().__init__()
        self.threshold, self.scale = drop_threshold(rate), 1.0 / (1.0 - rate)
        self.place = place_number(place)
        self.first_row, self.first_column = first_row, first_column

    def construct(self, x: Any, key: Any) -> Any:
        """`key` (2,) int32 of `dropout_key`"""
        rows, columns = x.shape
        row = ops.arange(rows).astype(mindspore.int32) + (key[1] + self.first_row * rows)
        column = ops.arange(columns).astype(mindspore.int32) + self.first_column * columns
        row = _mixed(row * _ROW + _mixed(key[0] + self.place)).reshape((rows, 1))
        bits = ops.bitwise_xor(
            ops.tile(row, (1, columns)), ops.tile((column * _COLUMN).reshape((1, columns)), (rows, 1))
        )
        kept = ops.cast(_mixed(bits) >= self.threshold, x.dtype)
        return x * (kept * self.scale)


def drop_threshold(rate: float) -> int:
    """What is below, of whole numbers from 0 to 2^31 - 1, is dropped."""
    return int(rate * 2**31)


def dropout_key(seed: int, step: int, first_row: int, tokens: int) -> np.ndarray:
    """The key of a batch of rows of `tokens` that begins at row `first_row` of its step, (2,) int32."""
    return np.array([place_number(f"{seed}:{step}"), (first_row * tokens) % 2**31], np.int32)


def _mixed(bits: Any) -> Any:
    """int32 -> int32, at least 0 and evenly spread: the sign goes with the last shift."""
    bits = ops.bitwise_xor(bits, ops.bitwise_right_shift(bits, 16)) * _MIX
    return ops.bitwise_xor(bits, ops.bitwise_right_shift(bits, 15))


def place_number(text: str) -> int:
    """A text as a number from 0 to 2^31 - 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1
