"""The decode cache: a ring of `min(context, window)` slots a sequence and head, written in place.

Keys and values of a layer are one parameter (B*H*slots, D): row (b*H + h)*slots + position % slots. A write is a
scatter on the leading axis, which MindSpore does in place and in time independent of the slots; reading a sequence's
slots is a reshape. With slots no more than the window every slot holds a token that the current one may see.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from spark13b.config.model import SparkConfig
from spark13b.model.attention.band import FORBIDDEN
from spark13b.model.device import dtype


class KVCache(nn.Cell):
    """Rings for `batch` sequences over all layers.

    `slots` may be fewer than `config.cache_slots` when the text is known to stay shorter; never more.
    """

    def __init__(self, config: SparkConfig, batch: int, slots: int) -> None:
        super().__init__()
        if not 1 <= slots <= config.cache_slots:
            raise ValueError(f"slots must be 1 to {config.cache_slots}, got {slots}")
        self.batch, self.slots, self.heads = batch, slots, config.num_heads
        shape = (batch * config.num_heads * slots, config.head_size)
        self.keys = ParameterTuple([_ring(shape, config, f"keys.{layer}") for layer in range(config.num_layers)])
        self.values = ParameterTuple([_ring(shape, config, f"values.{layer}") for layer in range(config.num_layers)])
        self.first_row = Tensor(np.arange(batch * config.num_heads).reshape(batch, -1) * slots, mindspore.int32)
        self.slot = Tensor(np.arange(slots), mindspore.int32)

    def rows(self, positions: Any) -> Any:
        """Where the tokens at `positions` (B,) go: (B*H,)"""
        return (self.first_row + (positions % self.slots).reshape((self.batch, 1))).reshape((-1,))

    def mask(self, positions: Any) -> Any:
        """The bias (B*H, 1, slots) that hides the slots not yet written when the tokens at `positions` are there."""
        hidden = self.slot.reshape((1, self.slots)) > positions.reshape((self.batch, 1))
        bias = ops.cast(hidden, mindspore.float32) * FORBIDDEN
        return ops.repeat_interleave(bias, self.heads, 0).reshape((self.batch * self.heads, 1, self.slots))

    def fill(self, layer: int, keys: Any, values: Any, lengths: Any) -> Any:
        """Write the last tokens of texts of `lengths` (B,) tokens; keys and values (B, H, T, D) from position 0 on."""
        tokens, width = keys.shape[2], keys.shape[3]
        last = lengths.reshape((self.batch, 1)) - 1
        slot = self.slot.reshape((1, self.slots))
        # the last position that falls on the slot; not yet reached slots take position 0 and are hidden by the mask
        position = ops.maximum(last - (last - slot) % self.slots, 0)
        first = self.first_row // self.slots * tokens
        source = (first.reshape((self.batch, self.heads, 1)) + position.reshape((self.batch, 1, self.slots))).reshape(
            (-1,)
        )
        ops.assign(self.keys[layer], ops.gather(keys.reshape((-1, width)), source, 0))
        ops.assign(self.values[layer], ops.gather(values.reshape((-1, width)), source, 0))
        return source


def attend_to_cache(q: Any, k: Any, v: Any, keys: Any, values: Any, rows: Any, mask: Any) -> Any:
    """Write k, v (B*H, D) to `rows` of the rings, then attend with q (B*H, D) over all slots -> (B*H, D)."""
    heads, _, slots = mask.shape
    width = q.shape[1]
    ops.scatter_update(keys, rows, k)
    ops.scatter_update(values, rows, v)
    shape = (heads, slots, width)
    scaled = (q * (1.0 / math.sqrt(width))).reshape((heads, 1, width))
    scores = ops.BatchMatMul(transpose_b=True)(scaled, keys.reshape(shape))
    weights = ops.softmax(ops.cast(scores, mindspore.float32) + mask, -1)
    return ops.BatchMatMul()(ops.cast(weights, q.dtype), values.reshape(shape)).reshape((heads, width))


def _ring(shape: tuple[int, int], config: SparkConfig, name: str) -> Parameter:
    return Parameter(ops.zeros(shape, dtype(config.compute_type)), name=name, requires_grad=False)
