"""Prefill and decode: the compiled graphs that turn tokens into the next token's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from spark13b.model.buckets import bucket
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.kv_cache import KVCache


class Decoder:
    """Feeds `batch` sequences of a model; their caches live here. Graphs are compiled once a shape bucket.

    A decoder serves one set of texts at a time: `prefill` begins anew.
    """

    def __init__(self, model: SparkForCausalLM, batch: int = 1) -> None:
        self.config = model.config
        self._model = model.transformer
        self._batch = batch
        self._graphs: dict[int, tuple[_Prefill, _Step]] = {}  # by slots of the cache
        self._lengths = np.zeros(batch, np.int32)
        self._total = 0
        self._step: _Step | None = None

    def prefill(self, prompts: Sequence[Sequence[int]], total: int) -> np.ndarray:
        """Read the prompts, one a sequence, each of 1 to `total` tokens -> logits (B, V) float32 after each.

        `total` is the most tokens, prompt and answer, that any of these texts will have: the caches need no more slots.
        Raises ValueError when it exceeds the context.
        """
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        if len(lengths) != self._batch or lengths.min() < 1 or lengths.max() > total:
            raise ValueError(f"prefill wants {self._batch} prompts of 1 to {total} tokens, got {lengths.tolist()}")
        if total > self.config.seq_length:
            raise ValueError(f"{total} tokens are more than the context of {self.config.seq_length}")
        slots = bucket(min(total, self.config.cache_slots), self.config.cache_slots)
        if slots not in self._graphs:
            cache = KVCache(self.config, self._batch, slots)
            self._graphs[slots] = (_Prefill(self._model, cache), _Step(self._model, cache))
        prefill, self._step = self._graphs[slots]
        ids = np.zeros((self._batch, bucket(int(lengths.max()), self.config.seq_length)), np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        self._lengths, self._total = lengths, total
        return prefill(Tensor(ids), Tensor(lengths)).asnumpy()

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Append one token to each sequence -> logits (B, V) float32 after it. Raises ValueError beyond `total`."""
        assert self._step is not None, "prefill comes first"
        if self._lengths.max() >= self._total:
            raise ValueError(f"prefill was told of {self._total} tokens at most, the caches hold no more")
        logits = self._step(Tensor(np.asarray(tokens, np.int32)), Tensor(self._lengths)).asnumpy()
        self._lengths = self._lengths + np.int32(1)
        return logits


class _Prefill(nn.Cell):
    """ids (B, T), lengths (B,) -> logits (B, V) of each text's last token; fills the cache."""

    def __init__(self, model: Any, cache: KVCache) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.cache = model, cache

    def construct(self, ids: Any, lengths: Any) -> Any:
        batch, tokens = ids.shape
        table = self.model.table()
        hidden, keys, values = self.model(ids)
        for layer in range(len(keys)):
            self.cache.fill(layer, keys[layer], values[layer], lengths)
        last = ops.arange(batch).astype(mindspore.int32) * tokens + lengths - 1
        return self.model.logits(ops.gather(hidden.reshape((batch * tokens, -1)), last, 0), table)


class _Step(nn.Cell):
    """ids (B,), positions (B,) -> logits (B, V); writes one slot of each ring."""

    def __init__(self, model: Any, cache: KVCache) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.cache = model, cache

    def construct(self, ids: Any, positions: Any) -> Any:
        table = self.model.table()
        rows, mask = self.cache.rows(positions), self.cache.mask(positions)
        hidden = self.model.decode(ids, positions, self.cache.keys, self.cache.values, rows, mask)
        return self.model.logits(hidden, table)
