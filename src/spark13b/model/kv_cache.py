"""The decode cache: a ring of `min(context, window)` slots a sequence and head, written in place.

Keys and values of a layer are one parameter (B*H*slots, D): row (b*H + h)*slots + position % slots. A write is a
scatter on the leading axis, which MindSpore does in place and in time independent of the slots; reading a sequence's
slots is a reshape. With slots no more than the window every slot holds a token that the current one may see.
"""

from __future__ import annotations

from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from spark13b.config.model import SparkConfig
from spark13b.model.attention.band import FORBIDDEN
from spark13b.model.device import dtype
from spark13b.model.mesh import ALONE, Mesh


class KVCache(nn.Cell):
    """Rings for `batch` sequences over all layers, with the heads of this process.

    `slots` may be fewer than `config.cache_slots` when the text is known to stay shorter; never more.
    """

    def __init__(self, config: SparkConfig, batch: int, slots: int, mesh: Mesh = ALONE) -> None:
        super().__init__()
        if not 1 <= slots <= config.cache_slots:
            raise ValueError(f"slots must be 1 to {config.cache_slots}, got {slots}")
        self.batch, self.slots, self.heads = batch, slots, config.num_heads // mesh.model.size
        shape = (batch * self.heads * slots, config.head_size)
        self.keys = ParameterTuple([_ring(shape, config, f"keys.{layer}") for layer in range(config.num_layers)])
        self.values = ParameterTuple([_ring(shape, config, f"values.{layer}") for layer in range(config.num_layers)])
        self.slot = Tensor(np.arange(slots), mindspore.int32)
        self.seat_row = Tensor(np.arange(self.heads * slots), mindspore.int32)

    def rows(self, places: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Where the tokens at `positions` (N,) of the sequences `places` (N,) go: (N*H,) int32"""
        first = (places[:, None] * self.heads + np.arange(self.heads)) * self.slots
        return (first + positions[:, None] % self.slots).reshape(-1).astype(np.int32)

    def mask(self, positions: Any) -> Any:
        """The bias (B*H, 1, slots) that hides the slots not yet written when the tokens at `positions` are there."""
        hidden = self.slot.reshape((1, self.slots)) > positions.reshape((self.batch, 1))
        bias = ops.cast(hidden, mindspore.float32) * FORBIDDEN
        return ops.repeat_interleave(bias, self.heads, 0).reshape((self.batch * self.heads, 1, self.slots))

    def seat_rows(self, seat: Any) -> Any:
        """All rows of sequence `seat` (1,): (H*slots,)"""
        return self.seat_row + seat * (self.heads * self.slots)


def attend_to_cache(q: Any, k: Any, v: Any, keys: Any, values: Any, rows: Any, mask: Any) -> Any:
    """Write k, v (B*H, D) to `rows` of the rings, then attend with q (B*H, D), scaled, over all slots -> (B*H, D)."""
    heads, _, slots = mask.shape
    width = q.shape[1]
    ops.scatter_update(keys, rows, k)
    ops.scatter_update(values, rows, v)
    shape = (heads, slots, width)
    scores = ops.BatchMatMul(transpose_b=True)(q.reshape((heads, 1, width)), keys.reshape(shape))
    weights = ops.softmax(ops.cast(scores, mindspore.float32) + mask, -1)
    return ops.BatchMatMul()(ops.cast(weights, q.dtype), values.reshape(shape)).reshape((heads, width))


def attend_to_past(q: Any, k: Any, v: Any, past: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Attend with q (H, T, D) over the rings of one seat and over k, v (H, T, D) behind them.

    `mask` (H, T, S+T), see `part_bias` -> (H, T, D), and what was attended to, (H, S+T, D) twice.
    """
    heads, _, width = q.shape
    keys = ops.concat((past[0].reshape((heads, -1, width)), k), 1)
    values = ops.concat((past[1].reshape((heads, -1, width)), v), 1)
    scores = ops.BatchMatMul(transpose_b=True)(q * (1.0 / width**0.5), keys)
    weights = ops.softmax(ops.cast(scores, mindspore.float32) + mask, -1)
    return ops.BatchMatMul()(ops.cast(weights, q.dtype), values), keys, values


def ring_after(ring: Any, found: Any, source: Any) -> None:
    """Fill the ring of one seat, (H*S, D), from `found` (H, N, D): slot s of each head takes row `source[s]` (S,)."""
    ops.assign(ring, ops.gather(found, source, 1).reshape(ring.shape))


def slot_sources(start: int, end: int, slots: int, held: int) -> np.ndarray:
    """For each slot of a ring, where the key it must hold after position `end` - 1 lies: (slots,) int32.

    Rows 0 to `held` - 1 are the ring as it was, those behind them the positions from `start` on. A slot without a
    position yet takes any row: it stays hidden until it is written.
    """
    slot = np.arange(slots)
    position = end - 1 - (end - 1 - slot) % slots  # the last position that falls on the slot
    kept = np.where(held > 0, slot, 0)
    return np.where(position >= start, held + position - start, kept).astype(np.int32)


def part_bias(start: int, tokens: int, slots: int, window: int) -> np.ndarray:
    """What the queries at `start`, `start` + 1, ... may see of a ring and of the part itself: (tokens, slots + tokens).

    0 where query i may see key j (i - window < j <= i), else very negative; float32.
    """
    query = np.arange(start, start + tokens)[:, None]
    slot = np.arange(slots)
    held = start - 1 - (start - 1 - slot) % slots  # positions in the ring; negative where there is none yet
    key = np.concatenate((held, np.arange(start, start + tokens)))
    seen = (key >= 0) & (key <= query) & (key > query - window)
    return np.where(seen, np.float32(0), np.float32(FORBIDDEN))


def _ring(shape: tuple[int, int], config: SparkConfig, name: str) -> Parameter:
    return Parameter(ops.zeros(shape, dtype(config.compute_type)), name=name, requires_grad=False)
