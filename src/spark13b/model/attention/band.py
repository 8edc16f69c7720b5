"""The additive mask of a sliding window: 0 where query i may see key j (i - window < j <= i), else very negative."""

from __future__ import annotations

from typing import Any

import mindspore
from mindspore import ops

FORBIDDEN = -6e4  # a float16 too; finite, so that no nan can arise; exp of it is 0


def band_bias(zero: Any, queries: int, keys: int, window: int, bias_type: Any) -> Any:
    """The bias (queries, keys) of the last `queries` of `keys` consecutive tokens.

    `zero` is an int32 0 that the compiler does not know: it would otherwise fold the mask and every slice of it into
    constants, and at long contexts those outweigh the model.
    """
    position = ops.arange(keys - queries, keys).astype(mindspore.int32).reshape((queries, 1)) + zero
    distance = position - ops.arange(keys).astype(mindspore.int32).reshape((1, keys))
    seen = ops.logical_and(distance >= 0, distance < window)
    return ops.cast(ops.logical_not(seen), bias_type) * FORBIDDEN
