"""Attention with all scores of a text at once: the shortest way for short texts."""

from __future__ import annotations

from typing import Any

from mindspore import ops

from spark13b.config.model import SparkConfig
from spark13b.model.attention.band import band_bias
from spark13b.model.attention.blocked import BlockedAttention, Scores

HALVED_TOKENS = 256  # from this length on it pays to leave out what the first half cannot see


class PlainAttention(BlockedAttention):
    """One block holds all queries of a text; in a longer one, of even length, each half of the queries is a block.

    The first half sees none of the keys of the second: a quarter of all scores is never computed.
    """

    def __init__(self, config: SparkConfig) -> None:
        super().__init__(config)
        self.halves = Halves(config)

    def queries(self, heads: int, tokens: int) -> int:
        return tokens

    def mask(self, zero: Any, batch: int, heads: int, tokens: int) -> Any:
        """The bias (B*H, T, T), or a pair of the halves' (B*H, T/2, T/2) and (B*H, T/2, T)."""
        if not _halved(tokens):
            return super().mask(zero, batch, heads, tokens)
        biases = [band_bias(zero, tokens // 2, keys, self.window, self.softmax_type) for keys in (tokens // 2, tokens)]
        return tuple(ops.tile(bias, (batch * heads, 1, 1)) for bias in biases)

    def construct(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        """q, k, v (B, H, T, D) -> (B, H, T, D)"""
        if not _halved(q.shape[2]):
            return super().construct(q, k, v, mask)
        flat = (q.shape[0] * q.shape[1], *q.shape[2:])
        return self.halves((q * self.scale).reshape(flat), k.reshape(flat), v.reshape(flat), *mask).reshape(q.shape)


class Halves(Scores):
    """Two blocks of queries over q (already scaled), k, v (N, T, D), and their biases; has its own gradient.

    Halves are cut by Split, which copies; MindSpore's CPU computes a slice of the middle axis number by number.
    """

    def __init__(self, config: SparkConfig) -> None:
        super().__init__(config)
        self.split = ops.Split(axis=1, output_num=2)

    def construct(self, q: Any, k: Any, v: Any, first_mask: Any, mask: Any) -> Any:
        (q1, q2), (k1, _), (v1, _) = self.split(q), self.split(k), self.split(v)
        first = self.matmul(ops.cast(self.weights(q1, k1, first_mask), self.compute_type), v1)
        second = self.matmul(ops.cast(self.weights(q2, k, mask), self.compute_type), v)
        return self.concat((first, second))

    def bprop(self, q: Any, k: Any, v: Any, first_mask: Any, mask: Any, out: Any, dout: Any) -> Any:
        """Gradients of q, k, v; see `Blocks.bprop` for the softmax's."""
        delta = self.concat_width((dout, -self.sum_width(dout * out, -1)))
        v_ones = self.concat_width((v, self.ones((v.shape[0], v.shape[1], 1), v.dtype)))
        (q1, q2), (k1, _), (v1, _) = self.split(q), self.split(k), self.split(v_ones)
        (dout1, dout2), (delta1, delta2) = self.split(dout), self.split(delta)
        dq1, dk1, dv1 = self.block_gradients(q1, k1, v1, first_mask, dout1, delta1)
        dq2, dk, dv = self.block_gradients(q2, k, v_ones, mask, dout2, delta2)
        (dk_first, dk_second), (dv_first, dv_second) = self.split(dk), self.split(dv)
        dk, dv = self.concat((dk_first + dk1, dk_second)), self.concat((dv_first + dv1, dv_second))
        return self.concat((dq1, dq2)), dk, dv, ops.zeros_like(first_mask), ops.zeros_like(mask)


def _halved(tokens: int) -> bool:
    return tokens >= HALVED_TOKENS and tokens % 2 == 0
