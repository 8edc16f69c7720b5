"""The decoder: blocks of attention and gated MLP over a residual stream, read top to bottom as shared/SPEC.md does."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn, ops

from spark13b.config.model import SparkConfig
from spark13b.model.attention.attend import Attend
from spark13b.model.device import dtype
from spark13b.model.kv_cache import attend_to_cache
from spark13b.model.layers import GatedMlp, LayerNorm, Linear, VocabEmbedding
from spark13b.model.rope import rope_table, rotate

_EXPAND_ROPE = 16 * 2**20  # up to so many numbers cos and sin are written out for every head


class SelfAttention(nn.Cell):
    """Query, key, value and output projections with rotary positions; the attention itself is `Attend` or the cache."""

    def __init__(self, config: SparkConfig, attend: Attend) -> None:
        super().__init__()
        self.heads, self.head_size = config.num_heads, config.head_size
        self.q_proj = Linear(config.hidden_size, config.hidden_size, config)
        self.k_proj = Linear(config.hidden_size, config.hidden_size, config)
        self.v_proj = Linear(config.hidden_size, config.hidden_size, config)
        self.out_proj = Linear(config.hidden_size, config.hidden_size, config)
        self.attend = attend

    def construct(self, h: Any, cos: Any, sin: Any, mask: Any) -> tuple[Any, Any, Any]:
        """h (B, T, C) -> (B, T, C) and the rotated keys and the values, (B, H, T, D), for a cache."""
        batch, tokens, width = h.shape
        q = rotate(self._heads(self.q_proj(h)), cos, sin)
        k = rotate(self._heads(self.k_proj(h)), cos, sin)
        v = self._heads(self.v_proj(h))
        out = self.attend(q, k, v, mask).transpose(0, 2, 1, 3).reshape((batch, tokens, width))
        return self.out_proj(out), k, v

    def decode(self, h: Any, cos: Any, sin: Any, keys: Any, values: Any, rows: Any, mask: Any) -> Any:
        """One token a sequence: h (B, C) -> (B, C). Writes its key and value into the cache first."""
        shape = (h.shape[0] * self.heads, self.head_size)
        q = rotate(self.q_proj(h).reshape(shape), cos, sin)
        k = rotate(self.k_proj(h).reshape(shape), cos, sin)
        out = attend_to_cache(q, k, self.v_proj(h).reshape(shape), keys, values, rows, mask)
        return self.out_proj(out.reshape(h.shape))

    def _heads(self, x: Any) -> Any:
        """(B, T, C) -> (B, H, T, D)"""
        return x.reshape((x.shape[0], x.shape[1], self.heads, self.head_size)).transpose(0, 2, 1, 3)


class Block(nn.Cell):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: SparkConfig, attend: Attend) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(config)
        self.attention = SelfAttention(config, attend)
        self.final_layer_norm = LayerNorm(config)
        self.mlp = GatedMlp(config)

    def construct(self, x: Any, cos: Any, sin: Any, mask: Any) -> tuple[Any, Any, Any]:
        """x (B, T, C) -> (B, T, C), keys and values (B, H, T, D)"""
        out, keys, values = self.attention(self.layer_norm(x), cos, sin, mask)
        x = x + out
        return x + self.mlp(self.final_layer_norm(x)), keys, values

    def decode(self, x: Any, cos: Any, sin: Any, keys: Any, values: Any, rows: Any, mask: Any) -> Any:
        """x (B, C), one token a sequence -> (B, C)"""
        x = x + self.attention.decode(self.layer_norm(x), cos, sin, keys, values, rows, mask)
        return x + self.mlp(self.final_layer_norm(x))


class Decoder(nn.Cell):
    """All blocks and the norm behind them."""

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.attend = Attend(config)
        self.layers = nn.CellList([Block(config, self.attend) for _ in range(config.num_layers)])
        self.layernorm = LayerNorm(config)
        cos, sin = rope_table(config)
        self.cos, self.sin = Tensor(cos, dtype(config.compute_type)), Tensor(sin, dtype(config.compute_type))

    def construct(self, x: Any, zero: Any) -> tuple[Any, list[Any], list[Any]]:
        """x (B, T, C) -> (B, T, C) normed, and each layer's keys and values. `zero`: see `band_bias`."""
        batch, tokens, _ = x.shape
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        if batch * self.heads * tokens * cos.shape[1] <= _EXPAND_ROPE:
            # MindSpore's CPU multiplies equal shapes three times as fast as broadcast ones
            cos, sin = ops.tile(cos, (batch, self.heads, 1, 1)), ops.tile(sin, (batch, self.heads, 1, 1))
        mask = self.attend.mask(zero, batch, self.heads, tokens)
        keys, values = [], []
        for block in self.layers:
            x, k, v = block(x, cos, sin, mask)
            keys.append(k)
            values.append(v)
        return self.layernorm(x), keys, values

    def decode(self, x: Any, positions: Any, all_keys: Any, all_values: Any, rows: Any, mask: Any) -> Any:
        """x (B, C), one token a sequence at `positions` (B,) -> (B, C) normed. Updates the caches in place."""
        cos = ops.repeat_interleave(ops.gather(self.cos, positions, 0), self.heads, 0)
        sin = ops.repeat_interleave(ops.gather(self.sin, positions, 0), self.heads, 0)
        for index, block in enumerate(self.layers):
            x = block.decode(x, cos, sin, all_keys[index], all_values[index], rows, mask)
        return self.layernorm(x)


class SparkModel(nn.Cell):
    """Embedding, decoder and the output projection that shares the embedding's weights."""

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        self.embedding = _Embedding(config)
        self.transformer = Decoder(config)

    def construct(self, ids: Any) -> tuple[Any, list[Any], list[Any]]:
        """ids (B, T) int32 -> hidden states (B, T, C), and each layer's keys and values (B, H, T, D)"""
        zero = ops.minimum(ids[0, 0], 0)  # ids are never negative
        return self.transformer(self.embedding(ids), zero)

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
        """(N, C), the table -> (N, V) float32"""
        return self.embedding.word_embeddings.logits(hidden, table)


class _Embedding(nn.Cell):
    """Only here for its place in the parameter names."""

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        self.word_embeddings = VocabEmbedding(config)

    def construct(self, ids: Any) -> Any:
        return self.word_embeddings(ids)
