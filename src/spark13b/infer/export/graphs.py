"""The two graphs that are exported: prefill and decode, which share nothing but tensors that go in and out.

MindSpore 2.9 keeps a parameter that a graph writes in place inside that graph: two MindIR files that are loaded each
have rings of their own, whatever is handed to `GraphCell` (tried). So the rings are inputs and outputs here, one of
keys and one of values a layer, (B, H, S, D), and the graphs keep no state. Position p of a text lies in slot p % S.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from spark13b.infer.export.shapes import ExportShapes
from spark13b.model.attention.band import FORBIDDEN
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.device import dtype
from spark13b.model.rope_table import rope_table


class Prefill(nn.Cell):
    """ids (B, T), lengths (B,) int32 -> logits (B, V) float32 after each text, the keys' rings, the values'.

    Texts shorter than T are padded on the right with whatever ids.
    """

    def __init__(self, model: SparkForCausalLM, shapes: ExportShapes) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.shapes = model.transformer, shapes
        self.heads, self.batch, self.slots = model.config.num_heads, shapes.batch_size, shapes.slots
        self.tokens, self.width = shapes.prompt_length, model.config.head_size
        self.slot = Tensor(np.arange(shapes.slots).reshape(1, -1), mindspore.int32)
        self.first_row = Tensor(np.arange(self.batch * self.heads).reshape(self.batch, self.heads, 1), mindspore.int32)
        self.first_token = Tensor(np.arange(self.batch) * self.tokens, mindspore.int32)

    def construct(self, ids: Any, lengths: Any) -> Any:
        hidden, keys, values = self.model(ids)
        last = lengths.reshape((self.batch, 1)) - 1
        # the last position that falls on a slot; a slot without one takes position 0, hidden until it is written
        position = ops.maximum(last - ops.floor_mod(last - self.slot, self.slots), 0)
        source = (self.first_row * self.tokens + position.reshape((self.batch, 1, self.slots))).reshape((-1,))
        rings: tuple[Any, ...] = ()
        for found in (keys, values):
            for layer in found:
                rows = ops.gather(layer.reshape((-1, self.width)), source, 0)
                rings += (rows.reshape((self.batch, self.heads, self.slots, self.width)),)
        hidden = ops.gather(hidden, self.first_token + last.reshape((self.batch,)), 0)
        return (self.model.logits(hidden, self.model.table()), *rings)


class Decode(nn.Cell):
    """ids, positions (B,) int32, the rings -> logits (B, V) float32 after these tokens, and the rings with them."""

    def __init__(self, model: SparkForCausalLM, shapes: ExportShapes) -> None:
        super().__init__(auto_prefix=False)
        config = model.config
        self.model = model.transformer
        self.decoder = model.transformer.transformer
        self.layers, self.heads, self.width = config.num_layers, config.num_heads, config.head_size
        self.batch, self.slots = shapes.batch_size, shapes.slots
        cos, sin = (table[: shapes.context] for table in rope_table(config))
        self.cos, self.sin = Tensor(cos, dtype(config.compute_type)), Tensor(sin, dtype(config.compute_type))
        self.slot = Tensor(np.arange(self.slots).reshape(1, -1), mindspore.int32)
        self.first_row = Tensor(
            np.arange(self.batch * self.heads).reshape(self.batch, -1) * self.slots, mindspore.int32
        )
        self.scores, self.mix = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        self.scale = 1.0 / math.sqrt(self.width)

    def construct(self, ids: Any, positions: Any, *rings: Any) -> Any:
        where = positions.reshape((self.batch, 1))
        rows = (self.first_row + ops.floor_mod(where, self.slots)).reshape((-1, 1))
        hidden_slots = ops.cast(self.slot > where, mindspore.float32) * FORBIDDEN  # those not written yet
        mask = ops.tile(hidden_slots.reshape((self.batch, 1, self.slots)), (1, self.heads, 1))
        mask = mask.reshape((self.batch * self.heads, 1, self.slots))
        cos, sin = ops.gather(self.cos, positions, 0), ops.gather(self.sin, positions, 0)
        cos, sin = cos.reshape((self.batch, 1, self.width)), sin.reshape((self.batch, 1, self.width))
        x = self.model.embedding(ids)
        all_keys: tuple[Any, ...] = ()
        all_values: tuple[Any, ...] = ()
        for index, block in enumerate(self.decoder.layers):
            attention, h = block.attention, block.layer_norm(x)
            q = attention.rotate(self._heads(attention.q_proj(h)), cos, sin)
            k = attention.rotate(self._heads(attention.k_proj(h)), cos, sin)
            v = self._heads(attention.v_proj(h))
            keys, values = self._written(rings[index], rows, k), self._written(rings[self.layers + index], rows, v)
            x = x + attention.out_proj(self._attend(q, keys, values, mask))
            x = x + block.mlp(block.final_layer_norm(x))
            all_keys += (keys.reshape((self.batch, self.heads, self.slots, self.width)),)
            all_values += (values.reshape((self.batch, self.heads, self.slots, self.width)),)
        logits = self.model.logits(self.decoder.layernorm(x), self.model.table())
        return (logits, *all_keys, *all_values)

    def _heads(self, x: Any) -> Any:
        """(B, H*D) -> (B, H, D)"""
        return x.reshape((self.batch, self.heads, self.width))

    def _written(self, ring: Any, rows: Any, new: Any) -> Any:
        """A ring with `new` (B, H, D) at `rows` (B*H, 1): (B*H, S, D)"""
        flat, new = ring.reshape((-1, self.width)), new.reshape((-1, self.width))
        return ops.tensor_scatter_update(flat, rows, new).reshape((-1, self.slots, self.width))

    def _attend(self, q: Any, keys: Any, values: Any, mask: Any) -> Any:
        """q (B, H, D), rings (B*H, S, D) -> (B, H*D)"""
        scores = self.scores((q * self.scale).reshape((-1, 1, self.width)), keys)
        weights = ops.softmax(ops.cast(scores, mindspore.float32) + mask, -1)
        return self.mix(ops.cast(weights, q.dtype), values).reshape((self.batch, self.heads * self.width))
