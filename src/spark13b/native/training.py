"""What a training step holds, as the library lays it out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark13b.native.arrays import check_array
from spark13b.native.library import Library


def training_bytes(library: Library, numbers: Sequence[int], types: Sequence[int]) -> int:
    """What a step of training holds beside weights and gradients; nothing is made.

    `numbers`: texts, tokens of each, layers, hidden size, heads, width of gate and up, vocabulary; 0 or 1, for
    bfloat16, of products and of biases; recompute; the adapters' rank, 0 without, a bit for each linear layer that has
    one, and whether their inputs are dropped. `types`: of the embedding and of each layer's seven matrices, see
    `Matrix`. Raises ValueError for numbers out of range.
    """
    given, kinds = np.array(numbers, np.int64), np.array(types, np.int32)
    check_array(given, (13,), np.int64, "numbers")
    check_array(kinds, (1 + 7 * numbers[2],), np.int32, "types")
    fits = 0 <= min(types) <= max(types) <= 3
    if not fits or (found := library.calls.spark_training_bytes(given.ctypes.data, kinds.ctypes.data)) < 0:
        raise ValueError(f"there is no step of training of {list(numbers)}")
    return int(found)


def packed_bytes(library: Library) -> int:
    """Bytes of packed rows that are in memory at once, at most, but always those of one part of a product."""
    return int(library.calls.spark_packed_bytes())


def logits_at_once(library: Library) -> int:
    """Logits that are in memory at once, at most, but always those of one token."""
    return int(library.calls.spark_logits_at_once())
