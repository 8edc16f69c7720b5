"""Attention with all scores at once: the shortest way for short texts, and the one to compare the others with."""

from __future__ import annotations

import math
from typing import Any

from mindspore import nn, ops

from spark13b.config.model import SparkConfig
from spark13b.model.attention.band import band_bias
from spark13b.model.device import dtype


class PlainAttention(nn.Cell):
    """softmax(q k^T / sqrt(D) + mask) v over (B, H, T, D)."""

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        self.window = config.sparse_local_size
        self.scale = 1.0 / math.sqrt(config.head_size)
        self.softmax_type = dtype(config.softmax_compute_type)
        self.compute_type = dtype(config.compute_type)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.weigh = ops.BatchMatMul()

    def mask(self, zero: Any, batch: int, heads: int, tokens: int) -> Any:
        """The bias (B, H, T, T) of all layers. Whole: MindSpore's CPU adds equal shapes six times as fast."""
        bias = band_bias(zero, tokens, tokens, self.window, self.softmax_type)
        return ops.tile(bias, (batch, heads, 1, 1))

    def construct(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        """q, k, v (B, H, T, D) -> (B, H, T, D)"""
        scores = ops.cast(self.scores(q * self.scale, k), self.softmax_type) + mask
        return self.weigh(ops.cast(ops.softmax(scores, -1), self.compute_type), v)
