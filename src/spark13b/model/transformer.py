"""The decoder: blocks of attention and gated MLP over a residual stream, read top to bottom as shared/SPEC.md does."""

from __future__ import annotations

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
from spark13b.model.kv_cache import attend_to_cache
from spark13b.model.layers import GatedMlp, LayerNorm, Linear, VocabEmbedding
from spark13b.model.mesh import ALONE, Mesh
from spark13b.model.rope import Rotate, rope_table

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

    def construct(self, h: Any, batch: int, cos: Any, sin: Any, mask: Any, key: Any = None) -> tuple[Any, Any, Any]:
        """h (N, C), rows of `batch` texts -> (N, C) and the rotated keys and the values, (B, H, T, D), for a cache."""
        h = self.enter(h)
        q = self.rotate(self._heads(self.q_proj(h, key), batch), cos, sin)
        k = self.rotate(self._heads(self.k_proj(h, key), batch), cos, sin)
        v = self._heads(self.v_proj(h, key), batch)
        out = self.attend(q, k, v, mask).transpose(0, 2, 1, 3).reshape((h.shape[0], self.heads * self.head_size))
        return self.leave(self.out_proj(out, key)), k, v

    def decode(self, h: Any, cos: Any, sin: Any, keys: Any, values: Any, rows: Any, mask: Any) -> Any:
        """One token a sequence: h (B, C) -> (B, C). Writes its key and value into the cache first."""
        shape = (h.shape[0] * self.heads, self.head_size)
        h = self.enter(h)
        q = self.rotate(self.q_proj(h).reshape(shape), cos, sin)
        k = self.rotate(self.k_proj(h).reshape(shape), cos, sin)
        out = attend_to_cache(q, k, self.v_proj(h).reshape(shape), keys, values, rows, mask)
        return self.leave(self.out_proj(out.reshape((h.shape[0], self.heads * self.head_size))))

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

    def decode(self, x: Any, cos: Any, sin: Any, keys: Any, values: Any, rows: Any, mask: Any) -> Any:
        """x (B, C), one token a sequence -> (B, C)"""
        x = x + self.attention.decode(self.layer_norm(x), cos, sin, keys, values, rows, mask)
        return x + self.mlp(self.final_layer_norm(x))


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
        """x (B, C), one token a sequence at `positions` (B,) -> (B, C) normed. Updates the caches in place."""
        cos = ops.repeat_interleave(ops.gather(self.cos, positions, 0), self.heads, 0)
        sin = ops.repeat_interleave(ops.gather(self.sin, positions, 0), self.heads, 0)
        for index, block in enumerate(self.layers):
            x = block.decode(x, cos, sin, all_keys[index], all_values[index], rows, mask)
        return self.layernorm(x)


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
        """ids (B,), positions (B,) -> hidden states (B, C)"""
        return self.transformer.decode(self.embedding(ids), positions, all_keys, all_values, rows, mask)

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
