"""Exact sliding-window attention, a block of queries at a time: memory linear in the length, on any device."""

from __future__ import annotations

import math
from typing import Any

from mindspore import nn, ops
from mindspore.ops.operations import _grad_ops

from spark13b.config.model import SparkConfig
from spark13b.model.attention.band import band_bias
from spark13b.model.attention.choose import block_size
from spark13b.model.device import dtype


class BlockedAttention(nn.Cell):
    """The plain backend's numbers with the scores of one block of queries in memory at once.

    Query block i sees the keys from `span` tokens before its first to its own last, span being the window rounded up
    to whole blocks; the mask cuts both edges. The gradient computes the scores again, block by block.
    """

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        self.window = config.sparse_local_size
        self.scale = 1.0 / math.sqrt(config.head_size)
        self.softmax_type = dtype(config.softmax_compute_type)
        self.blocks = _Blocks(config)

    def mask(self, zero: Any, batch: int, heads: int, tokens: int) -> Any:
        """The bias (B*H, block, span + block) that every block of every layer cuts its part from."""
        size = block_size(batch * heads, tokens, self.window)
        keys = _span(self.window, size, _round_up(tokens, size)) + size
        bias = band_bias(zero, size, keys, self.window, self.softmax_type)
        return ops.broadcast_to(bias, (batch * heads, size, keys))

    def construct(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        """q, k, v (B, H, T, D) -> (B, H, T, D)"""
        batch, heads, tokens, width = q.shape
        extra = _round_up(tokens, mask.shape[1]) - tokens
        flat = (batch * heads, tokens, width)
        q, k, v = (q * self.scale).reshape(flat), k.reshape(flat), v.reshape(flat)
        if extra:  # keys after the last token are seen by padded queries alone
            zeros = ops.zeros((batch * heads, extra, width), q.dtype)
            q, k, v = ops.concat((q, zeros), 1), ops.concat((k, zeros), 1), ops.concat((v, zeros), 1)
        out = self.blocks(q, k, v, mask)
        if extra:
            out = out[:, :tokens]
        return out.reshape((batch, heads, tokens, width))


class _Blocks(nn.Cell):
    """The blocks over q (already scaled), k, v (N, T, D) with T whole blocks, N = B*H; has its own gradient."""

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        self.softmax_type = dtype(config.softmax_compute_type)
        self.compute_type = dtype(config.compute_type)
        self.matmul = ops.BatchMatMul()
        self.matmul_t = ops.BatchMatMul(transpose_b=True)
        self.t_matmul = ops.BatchMatMul(transpose_a=True)
        self.softmax_grad = _grad_ops.SoftmaxGrad()

    def weights(self, q: Any, k: Any, mask: Any) -> Any:
        """The attention weights of one block, (N, block, keys) in the softmax type."""
        scores = ops.cast(self.matmul_t(q, k), self.softmax_type)
        return ops.softmax(scores + mask[:, :, mask.shape[2] - k.shape[1] :], -1)

    def construct(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        size = mask.shape[1]
        span = mask.shape[2] - size
        outs = []
        for first in range(0, q.shape[1], size):
            start, end = max(0, first - span), first + size
            weights = self.weights(q[:, first:end], k[:, start:end], mask)
            outs.append(self.matmul(ops.cast(weights, self.compute_type), v[:, start:end]))
        return ops.concat(outs, 1)

    def bprop(self, q: Any, k: Any, v: Any, mask: Any, out: Any, dout: Any) -> Any:
        """Gradients of q, k, v. Key gradients gather in a window that moves along with the queries."""
        size = mask.shape[1]
        span = mask.shape[2] - size
        dqs, dks, dvs = [], [], []
        window_dk, window_dv = None, None  # of the keys start..end that later queries may still see
        for first in range(0, q.shape[1], size):
            start, end = max(0, first - span), first + size
            q_block, dout_block = q[:, first:end], dout[:, first:end]
            k_block, v_block = k[:, start:end], v[:, start:end]
            weights = self.weights(q_block, k_block, mask)
            dweights = ops.cast(self.matmul_t(dout_block, v_block), self.softmax_type)
            dscores = ops.cast(self.softmax_grad(weights, dweights), self.compute_type)
            dqs.append(self.matmul(dscores, k_block))
            dk = self.t_matmul(dscores, q_block)
            dv = self.t_matmul(ops.cast(weights, self.compute_type), dout_block)
            if window_dk is not None:
                dk = _add_before(window_dk, dk)
                dv = _add_before(window_dv, dv)
            done = max(0, end - span) - start  # keys that no later query sees
            if end == q.shape[1]:
                done = end - start
            if done:
                dks.append(dk[:, :done])
                dvs.append(dv[:, :done])
            window_dk, window_dv = dk[:, done:], dv[:, done:]
        return ops.concat(dqs, 1), ops.concat(dks, 1), ops.concat(dvs, 1), ops.zeros_like(mask)


def _add_before(window: Any, new: Any) -> Any:
    """Add `window` to the first of the keys of `new`; the rest is the block's own."""
    if not window.shape[1]:
        return new
    return ops.concat((new[:, : window.shape[1]] + window, new[:, window.shape[1] :]), 1)


def _span(window: int, size: int, tokens: int) -> int:
    """Keys before its first query that a block takes along: the window's reach in whole blocks, at most all."""
    return min(_round_up(window - 1, size), tokens - size)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
