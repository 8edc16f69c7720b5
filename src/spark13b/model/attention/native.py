"""Attention by the native library: tiles of scores in the processor's caches, forward and backward an operator each."""

from __future__ import annotations

from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from spark13b.config.model import SparkConfig
from spark13b.model.device import dtype
from spark13b.native.library import Library, thread_count


class NativeAttention(nn.Cell):
    """Exact sliding-window attention in float32, in memory linear in the length; has its own gradient."""

    def __init__(self, config: SparkConfig, library: Library) -> None:
        super().__init__()
        self.compute_type = dtype(config.compute_type)
        self.tiles = Tiles(config.sparse_local_size, library)

    def mask(self, zero: Any, batch: int, heads: int, tokens: int) -> Any:
        """None is needed; every backend gives one."""
        return zero

    def construct(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        """q, k, v (B, H, T, D) -> (B, H, T, D)"""
        q, k, v = (ops.cast(one, mindspore.float32) for one in (q, k, v))
        out, _ = self.tiles(q, k, v)
        return ops.cast(out, self.compute_type)


class Tiles(nn.Cell):
    """q, k, v (B, H, T, D) float32 -> the attended values and each query's log of the sum of exponentials (B, H, T).

    The gradient is that of the values; the sums serve it alone.
    """

    def __init__(self, window: int, library: Library) -> None:
        super().__init__()
        float32 = 0  # a type of weights.h
        self.numbers = Tensor(np.array([thread_count(), library.level, window, float32], np.int64))
        f32 = mindspore.float32
        self.attend = ops.Custom(
            f"{library.path}:spark_attention", lambda n, q, k, v: (q, q[:3]), lambda n, q, k, v: (f32, f32), "aot"
        )
        self.gradient = ops.Custom(
            f"{library.path}:spark_attention_gradient",
            lambda n, q, k, v, *rest: (q, k, v),
            lambda n, q, k, v, *rest: (f32, f32, f32),
            "aot",
        )

    def construct(self, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
        return self.attend(self.numbers, q, k, v)

    def bprop(self, q: Any, k: Any, v: Any, out: Any, dout: Any) -> tuple[Any, Any, Any]:
        return self.gradient(self.numbers, q, k, v, out[0], out[1], dout[0])
