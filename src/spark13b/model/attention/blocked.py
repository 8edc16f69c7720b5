"""Exact sliding-window attention, a block of queries at a time: memory linear in the length, on any device."""

from __future__ import annotations

import math
from typing import Any

from mindspore import nn, ops

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
        self.blocks = Blocks(config)

    def mask(self, zero: Any, batch: int, heads: int, tokens: int) -> Any:
        """The bias (B*H, block, span + block) that every block of every layer cuts its part from."""
        size = self.queries(batch * heads, tokens)
        keys = _span(self.window, size, _round_up(tokens, size)) + size
        bias = band_bias(zero, size, keys, self.window, self.softmax_type)
        return ops.tile(bias, (batch * heads, 1, 1))

    def queries(self, heads: int, tokens: int) -> int:
        """Queries of one block, heads = B*H."""
        return block_size(heads, tokens, self.window)

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


class Scores(nn.Cell):
    """A block of queries and the keys that it sees: the weights and the gradients; q is scaled already."""

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        self.softmax_type = dtype(config.softmax_compute_type)
        self.compute_type = dtype(config.compute_type)
        self.matmul = ops.BatchMatMul()
        self.matmul_t = ops.BatchMatMul(transpose_b=True)
        self.t_matmul = ops.BatchMatMul(transpose_a=True)
        self.softmax = ops.Softmax(axis=-1)
        self.concat = ops.Concat(axis=1)
        self.concat_width = ops.Concat(axis=-1)
        self.ones = ops.Ones()
        self.sum_width = ops.ReduceSum(keep_dims=True)

    def weights(self, q: Any, k: Any, mask: Any) -> Any:
        """The attention weights of one block, (N, block, keys) in the softmax type."""
        scores = ops.cast(self.matmul_t(q, k), self.softmax_type)
        cut = mask.shape[2] - k.shape[1]
        return self.softmax(scores + (mask[:, :, cut:] if cut else mask))

    def block_gradients(self, q: Any, k: Any, v_ones: Any, mask: Any, dout: Any, dout_delta: Any) -> Any:
        """dq, dk, dv of one block of queries and the keys it sees."""
        weights = self.weights(q, k, mask)
        dweights = ops.cast(self.matmul_t(dout_delta, v_ones), self.softmax_type)
        dscores = ops.cast(weights * dweights, self.compute_type)
        dv = self.t_matmul(ops.cast(weights, self.compute_type), dout)
        return self.matmul(dscores, k), self.t_matmul(dscores, q), dv


class Blocks(Scores):
    """The blocks over q (already scaled), k, v (N, T, D) with T whole blocks, N = B*H; has its own gradient."""

    def construct(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        size = mask.shape[1]
        if size == q.shape[1]:  # all in one block; MindSpore does not see that a slice takes everything
            return self.matmul(ops.cast(self.weights(q, k, mask), self.compute_type), v)
        span = mask.shape[2] - size
        outs = []
        q_, k_, v_, mask_ = q, k, v, mask
        for first in range(0, q.shape[1], size):
            start, end = _first_key(first, span), first + size
            weights = self.weights(q_[:, first:end], k_[:, start:end], mask_)
            out = self.matmul(ops.cast(weights, self.compute_type), v_[:, start:end])
            # one block after the other: MindSpore would cut all slices of all blocks first, and hold them
            q_, k_, v_, mask_ = ops.depend(q, out), ops.depend(k, out), ops.depend(v, out), ops.depend(mask, out)
            outs.append(out)
        return self.concat(outs)

    def bprop(self, q: Any, k: Any, v: Any, mask: Any, out: Any, dout: Any) -> Any:
        """Gradients of q, k, v. Key gradients gather in a window that moves along with the queries.

        The softmax's gradient is weights * (dout v^T - delta) with delta = sum(dout * out): delta rides along in the
        matrix product as one more column, for a subtraction would have to broadcast, which is slow on a CPU.
        """
        size = mask.shape[1]
        dout_delta = self.concat_width((dout, -self.sum_width(dout * out, -1)))
        v_ones = self.concat_width((v, self.ones((v.shape[0], v.shape[1], 1), v.dtype)))
        if size == q.shape[1]:
            dq, dk, dv = self.block_gradients(q, k, v_ones, mask, dout, dout_delta)
            return dq, dk, dv, ops.zeros_like(mask)
        span = mask.shape[2] - size
        dqs, dks, dvs = [], [], []
        window_dk, window_dv = k, v  # replaced before they are read: gradients of keys that later queries still see
        q_, k_, v_, mask_, dout_, delta_ = q, k, v_ones, mask, dout, dout_delta
        for first in range(0, q.shape[1], size):
            start, end = _first_key(first, span), first + size
            dq, dk, dv = self.block_gradients(
                q_[:, first:end], k_[:, start:end], v_[:, start:end], mask_, dout_[:, first:end], delta_[:, first:end]
            )
            dqs.append(dq)
            if first > 0 and span > 0:
                dk, dv = _add_before(window_dk, dk), _add_before(window_dv, dv)
            # keys before the next block's first are done: no later query sees them
            done = end - start if end == q.shape[1] else _first_key(end, span) - start
            if done == end - start:
                dks.append(dk)
                dvs.append(dv)
            elif done > 0:
                dks.append(dk[:, :done])
                dvs.append(dv[:, :done])
                window_dk, window_dv = dk[:, done:], dv[:, done:]
            else:
                window_dk, window_dv = dk, dv
            q_, k_, mask_ = ops.depend(q, dk), ops.depend(k, dk), ops.depend(mask, dk)
            v_, dout_, delta_ = ops.depend(v_ones, dk), ops.depend(dout, dk), ops.depend(dout_delta, dk)
        return self.concat(dqs), self.concat(dks), self.concat(dvs), ops.zeros_like(mask)


def _first_key(first: int, span: int) -> int:
    """The first key that the block of query `first` takes along."""
    return first - span if first > span else 0


def _add_before(window: Any, new: Any) -> Any:
    """Add the gradients gathered so far, `window`, to the first keys of `new`; the rest is the block's own."""
    return ops.concat((new[:, : window.shape[1]] + window, new[:, window.shape[1] :]), 1)


def _span(window: int, size: int, tokens: int) -> int:
    """Keys before its first query that a block takes along: the window's reach in whole blocks, at most all."""
    return min(_round_up(window - 1, size), tokens - size)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
