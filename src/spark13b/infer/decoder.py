"""Prefill and decode by MindSpore: the compiled graphs that turn tokens into the next token's logits.

Seats (see `decoding.py`) 1 and up stand in batches of `BATCH`, whose texts grow together in one graph call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from spark13b.infer.decoding import READING
from spark13b.model.buckets import bucket
from spark13b.model.causal_lm import SparkForCausalLM, WholeLogits
from spark13b.model.device import device
from spark13b.model.kv_cache import KVCache, part_bias, slot_sources

# oneDNN multiplies 2 to 8 rows with the same kernel: each row's numbers are the same to the last bit, whatever the
# others are. One row, or 16, are other kernels, and no faster than 2, or than twice 8 (benchmarks/infer.py).
BATCH = 8
MIN_ROWS = 2


class Decoder:
    """Rings of `slots` slots for seat 0 and `seats` more, and the graphs that work on them.

    `slots` bounds the tokens of a text, prompt and answer, unless it is the whole window (`config.cache_slots`).
    """

    batch = BATCH
    checks_drafts = False  # a step has one token of a text

    def __init__(self, model: SparkForCausalLM, slots: int, seats: int = 0, chunk: int = 512) -> None:
        self.config, self.slots, self.seats, self.chunk = model.config, slots, seats, chunk
        self._model = model
        self._rings: dict[int, KVCache] = {}  # seat 0's, and from 1 on those of the batches
        self._lengths: dict[int, int] = {}  # tokens of the text that a seat holds, running or not
        self._reads: dict[tuple[int, bool], _Read] = {}
        self._steps: dict[int, _Step] = {}
        self._copies: dict[tuple[int, int], _Copy] = {}

    def read(self, ids: Sequence[int], start: int) -> np.ndarray:
        """Read a part of a prompt, at most `chunk` tokens at position `start` -> logits (V,) float32 after it.

        `start` 0 begins a new text in seat 0; other parts go on where the last one ended.
        """
        count = len(ids)
        if not 1 <= count <= self.chunk or start + count > self._room:
            raise ValueError(f"{count} tokens at {start}: there is room for {self.chunk} at once, {self._room} in all")
        size = bucket(count, self.chunk)
        begins = start == 0
        if (size, begins) not in self._reads:
            self._reads[size, begins] = _Read(self._model, self._ring(READING))
        padded = np.zeros(size, np.int32)
        padded[:count] = ids
        places = np.minimum(np.arange(start, start + size), self.config.seq_length - 1).astype(np.int32)
        source = slot_sources(start, start + count, self.slots, held=0 if begins else self.slots)
        self._lengths[READING] = start + count
        inputs = [padded, places, np.array([count - 1], np.int32), source]
        if not begins:
            inputs.append(part_bias(start, size, self.slots, self.config.sparse_local_size))
        return self._reads[size, begins](*map(Tensor, inputs)).asnumpy()[0]

    def step(self, seats: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """Append a token to the text of each seat, at its position -> logits (len(seats), V) float32 after each."""
        if max(positions) >= self._room:
            raise ValueError(f"position {max(positions)}: there is room for {self._room} tokens")
        logits = np.empty((len(seats), self.config.vocab_size), np.float32)
        batches: dict[int, list[int]] = {}
        for index, seat in enumerate(seats):
            self._lengths[seat] = positions[index] + 1
            batches.setdefault(self._batch_of(seat), []).append(index)
        for batch, indices in batches.items():
            places = [self._place_of(seats[index]) for index in indices]
            found = self._grow(batch, places, [tokens[i] for i in indices], [positions[i] for i in indices])
            logits[indices] = found[places]
        return logits

    def copy(self, source: int, target: int) -> None:
        """Let seat `target` hold what seat `source` holds."""
        key = self._batch_of(source), self._batch_of(target)
        if key not in self._copies:
            self._copies[key] = _Copy(self._ring(key[0]), self._ring(key[1]))
        self._lengths[target] = self._lengths.get(source, 0)
        seats = [np.array([self._place_of(seat)], np.int32) for seat in (source, target)]
        self._copies[key](*map(Tensor, seats))

    @property
    def graphs(self) -> int:
        """How many graphs there are; a call that adds one compiles it."""
        return len(self._reads) + len(self._steps) + len(self._copies)

    @property
    def _room(self) -> int:
        """Tokens that a text may have."""
        return self.config.seq_length if self.slots == self.config.cache_slots else self.slots

    def _grow(self, batch: int, places: list[int], tokens: list[int], positions: list[int]) -> np.ndarray:
        """One step of a whole batch -> logits (N, V). Seats that do not grow write behind their text."""
        ring = self._ring(batch)
        count = max(ring.batch, _min_rows())
        ids, where = np.zeros(count, np.int32), np.zeros(count, np.int32)
        first = (batch - 1) * BATCH + 1 if batch else READING
        behind = [self._lengths.get(first + place, 0) for place in range(ring.batch)]
        where[: ring.batch] = np.minimum(behind, self._room - 1)  # a text that fills it cannot go on
        ids[places], where[places] = tokens, positions
        seats = np.minimum(np.arange(count), ring.batch - 1)
        ids, where = ids[seats], where[seats]  # rows beyond the batch are the last one's again
        if batch not in self._steps:
            self._steps[batch] = _Step(self._model, ring)
        return self._steps[batch](*map(Tensor, (ids, where, ring.rows(seats, where)))).asnumpy()

    def _ring(self, batch: int) -> KVCache:
        if batch not in self._rings:
            size = min(BATCH, self.seats - (batch - 1) * BATCH) if batch else 1
            self._rings[batch] = KVCache(self.config, size, self.slots, self._model.setup.mesh)
        return self._rings[batch]

    @staticmethod
    def _batch_of(seat: int) -> int:
        return 0 if seat == READING else (seat - 1) // BATCH + 1

    @staticmethod
    def _place_of(seat: int) -> int:
        return 0 if seat == READING else (seat - 1) % BATCH


def _min_rows() -> int:
    return MIN_ROWS if device() == "cpu" else 1


class _Graph(nn.Cell):
    """A graph of one shape. With this phase MindSpore runs it at once when it is compiled: otherwise each call tells
    every cell of the model about the phase and forms a key of the arguments, 0.3 ms a layer."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.phase = "increment"

    def __call__(self, *inputs: Tensor) -> Tensor:
        try:
            return super().__call__(*inputs)
        except RuntimeError as error:
            # with a cell that goes, another model's, MindSpore 2.9 forgets graphs of others
            if "No executor info" not in str(error):
                raise
            self.phase_cache.clear()
            return super().__call__(*inputs)


class _Read(_Graph):
    """A part of a text: ids, places (T,), the last token's index (1,), slot sources (S,), mask -> logits (1, V)."""

    def __init__(self, model: SparkForCausalLM, ring: KVCache) -> None:
        super().__init__()
        self.model, self.ring = model.transformer, ring
        self.logits = WholeLogits(model.transformer, model.setup.mesh)

    def construct(self, ids: Any, places: Any, last: Any, source: Any, mask: Any = None) -> Any:
        table = self.model.table()
        hidden = self.model.read(ids, places, last, (self.ring.keys, self.ring.values), source, mask)
        return self.logits(hidden, table)


class _Step(_Graph):
    """ids, positions (N,), rows of the rings (N*H,) -> logits (N, V)"""

    def __init__(self, model: SparkForCausalLM, ring: KVCache) -> None:
        super().__init__()
        self.model, self.ring = model.transformer, ring
        self.logits = WholeLogits(model.transformer, model.setup.mesh)

    def construct(self, ids: Any, positions: Any, rows: Any) -> Any:
        table = self.model.table()
        own = positions if ids.shape[0] == self.ring.batch else positions[: self.ring.batch]
        rings = (self.ring.keys, self.ring.values)
        return self.logits(self.model.decode(ids, positions, *rings, rows, self.ring.mask(own)), table)


class _Copy(_Graph):
    """Two seats (1,), of one cache or of two: the second one's rings become like the first one's."""

    def __init__(self, source: KVCache, target: KVCache) -> None:
        super().__init__()
        self.source, self.target = source, target

    def construct(self, source: Any, target: Any) -> Any:
        take, put = self.source.seat_rows(source), self.target.seat_rows(target)
        for layer in range(len(self.source.keys)):
            ops.scatter_update(self.target.keys[layer], put, ops.gather(self.source.keys[layer], take, 0))
            ops.scatter_update(self.target.values[layer], put, ops.gather(self.source.values[layer], take, 0))
        return put
