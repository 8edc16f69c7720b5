"""The decoder: blocks of attention and gated MLP over a residual stream, read top to bottom as shared/SPEC.md does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor, nn, ops

from spark13b.config.model import SparkConfig
from spark13b.config.sections import LoraConfig
from spark13b.model.adapter import AdapterPlans, adapter_plans
from spark13b.model.attention.attend import Attend
from spark13b.model.collectives import entrance, exit_of, join_rows, take_rows
from spark13b.model.device import dtype
from spark13b.model.dropout import Dropout
from spark13b.model.kv_cache import attend_to_cache, attend_to_past, ring_after
from spark13b.model.layers import GatedMlp, LayerNorm, Linear, VocabEmbedding
from spark13b.model.mesh import ALONE, Mesh
from spark13b.model.rope import Rotate
from spark13b.model.rope_table import rope_table

_EXPAND_ROPE = 16 * 2**20  # up to so many numbers cos and sin are written out for every head


@dataclass(frozen=True)
class Setup:
    """What is not in a checkpoint: the part of this process, the adapters, the share that dropout takes.

    With `slice_activations` the residual stream between blocks is divided over the model group (what a recomputed
    block keeps for its gradient), and put together at each block's begin.
    """

    mesh: Mesh = ALONE
    lora: LoraConfig | None = None
    dropout: float = 0.0
    slice_activations: bool = False

    def residual_dropout(self, place: str) -> Dropout:
        """Dropout on rows of the residual stream."""
        return Dropout(self.dropout, place, first_row=self.mesh.model.index if self.mesh.sequence_parallel else 0)


class SelfAttention(nn.Cell):
    """Query, key, value and output projections with rotary positions; the attention itself is `Attend` or the cache.

    H and the inner width are those of this process's heads.
    """

    def __init__(self, config: SparkConfig, attend: Attend, mesh: Mesh, adapters: AdapterPlans) -> None:
        super().__init__()
        self.heads, self.head_size = config.num_heads // mesh.model.size, config.head_size
        width = self.heads * self.head_size
        self.enter, self.leave = entrance(mesh), exit_of(mesh)
        self.q_proj = Linear(config.hidden_size, width, config, adapters("q_proj"))
        self.k_proj = Linear(config.hidden_size, width, config, adapters("k_proj"))
        self.v_proj = Linear(config.hidden_size, width, config, adapters("v_proj"))
        self.out_proj = Linear(width, config.hidden_size, config, adapters("out_proj"), summand=mesh)
        self.attend, self.rotate = attend, Rotate(config)
        self.turn = ops.BatchMatMul()

    def construct(self, h: Any, batch: int, cos: Any, sin: Any, mask: Any, key: Any = None) -> tuple[Any, Any, Any]:
        """h (N, C), rows of `batch` texts -> (N, C) and the rotated keys and the values, (B, H, T, D), for a cache."""
        h = self.enter(h)
        q = self.rotate(self._heads(self.q_proj(h, key), batch), cos, sin)
        k = self.rotate(self._heads(self.k_proj(h, key), batch), cos, sin)
        v = self._heads(self.v_proj(h, key), batch)
        out = self.attend(q, k, v, mask).transpose(0, 2, 1, 3).reshape((h.shape[0], self.heads * self.head_size))
        return self.leave(self.out_proj(out, key)), k, v

    def decode(self, h: Any, turns: tuple[Any, Any], keys: Any, values: Any, rows: Any, mask: Any) -> Any:
        """One token a row: h (N, C) -> (N, C). Writes its keys and values into the cache first.

        `turns`: the rotations of queries, scaled, and of keys, (N, D, D). N may exceed the cache's sequences, see
        `SparkModel.decode`.
        """
        count, sequences = h.shape[0], mask.shape[0] // self.heads
        split, flat = (count, self.heads, self.head_size), (count * self.heads, self.head_size)
        h = self.enter(h)
        q = self.turn(self.q_proj(h).reshape(split), turns[0])
        k = self.turn(self.k_proj(h).reshape(split), turns[1]).reshape(flat)
        v = self.v_proj(h).reshape(flat)
        if sequences < count:
            q = q[:sequences]
        out = attend_to_cache(q.reshape((sequences * self.heads, self.head_size)), k, v, keys, values, rows, mask)
        out = out.reshape((sequences, self.heads * self.head_size))
        if sequences < count:
            out = ops.tile(out, (count, 1))
        return self.leave(self.out_proj(out))

    def read(self, h: Any, cos: Any, sin: Any, mask: Any, past: Any) -> tuple[Any, Any, Any]:
        """A part of one text: h (T, C) -> (T, C) and the keys and values, (H, S+T, D), S being the ring's slots or 0.

        `past`: the rings of this layer's keys and values where something was read before, else None.
        """
        h = self.enter(h)
        q, k = self._rotated(self.q_proj(h), cos, sin), self._rotated(self.k_proj(h), cos, sin)
        v = self._heads_first(self.v_proj(h))
        if past is None:
            one = (1, *q.shape)
            out = self.attend(q.reshape(one), k.reshape(one), v.reshape(one), mask).reshape(q.shape)
        else:
            out, k, v = attend_to_past(q, k, v, past, mask)
        out = out.transpose(1, 0, 2).reshape((h.shape[0], self.heads * self.head_size))
        return self.leave(self.out_proj(out)), k, v

    def _rotated(self, x: Any, cos: Any, sin: Any) -> Any:
        return self.rotate(self._heads_first(x), cos, sin)

    def _heads_first(self, x: Any) -> Any:
        """(T, H*D) -> (H, T, D)"""
        return x.reshape((x.shape[0], self.heads, self.head_size)).transpose(1, 0, 2)

    def _heads(self, x: Any, batch: int) -> Any:
        """(N, H*D) -> (B, H, T, D)"""
        return x.reshape((batch, x.shape[0] // batch, self.heads, self.head_size)).transpose(0, 2, 1, 3)


class Block(nn.Cell):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: SparkConfig, attend: Attend, setup: Setup, place: str) -> None:
        super().__init__()
        mesh, adapters = setup.mesh, adapter_plans(setup.lora, setup.mesh, place)
        self.layer_norm = LayerNorm(config)
        self.attention = SelfAttention(config, attend, mesh, adapters)
        self.final_layer_norm = LayerNorm(config)
        self.mlp = GatedMlp(config, mesh, adapters)
        self.sliced = setup.slice_activations
        if self.sliced:
            self.join, self.take = join_rows(mesh.model), take_rows(mesh.model)
        self.drops = setup.dropout > 0
        if self.drops:
            self.attention_dropout = setup.residual_dropout(f"{place}.attention")
            self.mlp_dropout = setup.residual_dropout(f"{place}.mlp")

    def construct(self, x: Any, batch: int, cos: Any, sin: Any, mask: Any, key: Any = None) -> tuple[Any, Any, Any]:
        """x (N, C), rows of `batch` texts -> (N, C), keys and values (B, H, T, D)"""
        if self.sliced:
            x = self.join(x)
        out, keys, values = self.attention(self.layer_norm(x), batch, cos, sin, mask, key)
        if self.drops and key is not None:
            out = self.attention_dropout(out, key)
        x = x + out
        out = self.mlp(self.final_layer_norm(x), key)
        if self.drops and key is not None:
            out = self.mlp_dropout(out, key)
        x = x + out
        return self.take(x) if self.sliced else x, keys, values

    def decode(self, x: Any, turns: tuple[Any, Any], keys: Any, values: Any, rows: Any, mask: Any) -> Any:
        """x (N, C), one token a row -> (N, C)"""
        x = x + self.attention.decode(self.layer_norm(x), turns, keys, values, rows, mask)
        return x + self.mlp(self.final_layer_norm(x))

    def read(self, x: Any, cos: Any, sin: Any, mask: Any, past: Any) -> tuple[Any, Any, Any]:
        """A part of one text: x (T, C) -> (T, C), keys and values as of `SelfAttention.read`"""
        out, keys, values = self.attention.read(self.layer_norm(x), cos, sin, mask, past)
        x = x + out
        return x + self.mlp(self.final_layer_norm(x)), keys, values


class Decoder(nn.Cell):
    """All blocks and the norm behind them."""

    def __init__(self, config: SparkConfig, setup: Setup) -> None:
        super().__init__()
        self.heads = config.num_heads // setup.mesh.model.size
        self.attend = Attend(config)
        self.layers = nn.CellList(
            [Block(config, self.attend, setup, f"layers.{index}") for index in range(config.num_layers)]
        )
        self.layernorm = LayerNorm(config)
        self.sliced = setup.slice_activations
        if self.sliced:
            self.join, self.take = join_rows(setup.mesh.model), take_rows(setup.mesh.model)
        cos, sin = rope_table(config)
        self.rotate = Rotate(config)
        self.cos, self.sin = Tensor(cos, dtype(config.compute_type)), Tensor(sin, dtype(config.compute_type))

    def construct(self, x: Any, batch: int, tokens: int, zero: Any, key: Any) -> tuple[Any, list[Any], list[Any]]:
        """x (N, C) -> (N, C) normed, and each layer's keys and values. `zero`: see `band_bias`."""
        cos, sin, mask = self.shared(batch, tokens, zero)
        keys, values = [], []
        x = self.before(x)
        for block in self.layers:
            x, k, v = block(x, batch, cos, sin, mask, key)
            keys.append(k)
            values.append(v)
        return self.after(x), keys, values

    def before(self, x: Any) -> Any:
        """The rows that the first block takes."""
        return self.take(x) if self.sliced else x

    def after(self, x: Any) -> Any:
        """The rows of the last block -> all rows, normed"""
        return self.layernorm(self.join(x) if self.sliced else x)

    def shared(self, batch: int, tokens: int, zero: Any) -> tuple[Any, Any, Any]:
        """What all blocks use: the rotation of every position, and the attention's mask."""
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        if batch * self.heads * tokens * cos.shape[1] <= _EXPAND_ROPE:
            # MindSpore's CPU multiplies equal shapes three times as fast as broadcast ones
            cos, sin = ops.tile(cos, (batch, self.heads, 1, 1)), ops.tile(sin, (batch, self.heads, 1, 1))
        return cos, sin, self.attend.mask(zero, batch, self.heads, tokens)

    def decode(self, x: Any, positions: Any, all_keys: Any, all_values: Any, rows: Any, mask: Any) -> Any:
        """x (N, C), one token a row at `positions` (N,) -> (N, C) normed. Updates the caches in place."""
        cos, sin = ops.gather(self.cos, positions, 0), ops.gather(self.sin, positions, 0)
        scale = 1.0 / math.sqrt(cos.shape[1])  # of the scores: with the rotation of the queries it costs nothing
        turns = (self.rotate.matrices(cos * scale, sin * scale), self.rotate.matrices(cos, sin))
        for index, block in enumerate(self.layers):
            x = block.decode(x, turns, all_keys[index], all_values[index], rows, mask)
        return self.layernorm(x)

    def read(self, x: Any, places: Any, mask: Any, all_keys: Any, all_values: Any, source: Any, begins: bool) -> Any:
        """A part of one text: x (T, C) at `places` (T,) -> (T, C) before the last norm. Fills the rings of one seat.

        `source` as of `ring_after`; where the text `begins` nothing lies in the rings, and `mask` is the backend's.
        """
        cos, sin = ops.gather(self.cos, places, 0), ops.gather(self.sin, places, 0)
        if self.heads * cos.size <= _EXPAND_ROPE:
            cos, sin = ops.tile(cos, (self.heads, 1, 1)), ops.tile(sin, (self.heads, 1, 1))
        for index, block in enumerate(self.layers):
            past = None if begins else (all_keys[index], all_values[index])
            x, keys, values = block.read(x, cos, sin, mask, past)
            ring_after(all_keys[index], keys, source)
            ring_after(all_values[index], values, source)
        return x


class SparkModel(nn.Cell):
    """Embedding, decoder and the output projection that shares the embedding's weights.

    Hidden states are rows (N, C), N = B*T; under sequence parallelism a process holds N / model_parallel of them.
    """

    def __init__(self, config: SparkConfig, setup: Setup) -> None:
        super().__init__()
        self.embedding = _Embedding(config, setup.mesh)
        self.transformer = Decoder(config, setup)
        self.drops = setup.dropout > 0
        if self.drops:
            self.dropout = setup.residual_dropout("embedding")

    def construct(self, ids: Any, key: Any = None) -> tuple[Any, list[Any], list[Any]]:
        """ids (B, T) int32 -> hidden states (N, C), and each layer's keys and values (B, H, T, D)

        `key`: `dropout_key` of the batch in training; None drops nothing.
        """
        batch, tokens = ids.shape
        return self.transformer(self.embed(ids, key), batch, tokens, self.zero(ids), key)

    def embed(self, ids: Any, key: Any) -> Any:
        """ids (B, T) -> rows (N, C)"""
        x = self.embedding(ids.reshape((-1,)))
        if self.drops and key is not None:
            x = self.dropout(x, key)
        return x

    def zero(self, ids: Any) -> Any:
        """A 0 that the compiler does not know, see `band_bias`: ids are never negative."""
        return ops.minimum(ids[0, 0], 0)

    def decode(self, ids: Any, positions: Any, all_keys: Any, all_values: Any, rows: Any, mask: Any) -> Any:
        """The next tokens of texts: ids, positions (N,) -> hidden states (N, C).

        `rows` (N*H,) and `mask` (B*H, 1, slots) as of `KVCache`. With one text, N may be 2 for speed: the same twice.
        """
        return self.transformer.decode(self.embedding(ids), positions, all_keys, all_values, rows, mask)

    def read(self, ids: Any, places: Any, last: Any, rings: Any, source: Any, mask: Any = None) -> Any:
        """A part of one text: ids (T,) at `places` (T,) -> hidden states (1, C) of token `last`, an index (1,).

        Fills `rings`, all layers' keys and values of one seat. `mask` (T, S+T), see `part_bias`: where the part is not
        the first.
        """
        keys, values = rings
        begins = mask is None
        if begins:
            heads, tokens = self.transformer.heads, ids.shape[0]
            mask = self.transformer.attend.mask(ops.minimum(ids[0], 0), 1, heads, tokens)
        else:
            mask = ops.tile(mask, (self.transformer.heads, 1, 1))  # equal shapes are added three times as fast
        x = self.transformer.read(self.embedding(ids), places, mask, keys, values, source, begins)
        return self.transformer.layernorm(ops.gather(x, last, 0))

    def table(self) -> Any:
        """The embedding (V, C) as `logits` needs it.

        A graph that updates a cache in place takes it before: MindSpore copies a parameter, twice, that is read on both
        sides of an update. With 32000 tokens and 4 layers of 512 a decode step took 62 ms so, and takes 31 ms.
        """
        return self.embedding.word_embeddings.table()

    def logits(self, hidden: Any, table: Any) -> Any:
        """(N, C), the table -> (N, V) float32, V being this process's part of the vocabulary"""
        return self.embedding.word_embeddings.logits(hidden, table)


class _Embedding(nn.Cell):
    """Only here for its place in the parameter names."""

    def __init__(self, config: SparkConfig, mesh: Mesh) -> None:
        super().__init__()
        self.word_embeddings = VocabEmbedding(config, mesh)

    def construct(self, ids: Any) -> Any:
        return self.word_embeddings(ids)
