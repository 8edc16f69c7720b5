"""Prefill and decode by the native library, and the choice between it and MindSpore's graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spark13b.infer.decoding import READING, Decoding
from spark13b.infer.native_model import NativeAdapters, NativeModel
from spark13b.model.native_choice import answering_problem, describe_library
from spark13b.native.arrays import addresses_of
from spark13b.native.decoding import decode_step, prefill
from spark13b.native.library import Library, find_library, thread_count
from spark13b.native.matrix import BFLOAT16

if TYPE_CHECKING:
    from spark13b.model.causal_lm import SparkForCausalLM


def make_decoder(model: SparkForCausalLM | NativeModel, slots: int, seats: int, chunk: int) -> Decoding:
    """The decoder that answers fastest here: the native one where it can, else MindSpore's."""
    if isinstance(model, NativeModel):
        return NativeDecoder(model, slots, seats, chunk)
    library = find_library().library
    if library is None or why_not(model) is not None:
        from spark13b.infer.decoder import Decoder

        return Decoder(model, slots, seats, chunk)
    return NativeDecoder(native_model_of(model, library), slots, seats, chunk)


def describe(model: SparkForCausalLM | NativeModel) -> str:
    """Which decoder `make_decoder` chooses for a model, and why, in a sentence."""
    if (reason := reason_for_mindspore(model)) is not None:
        return f"answers by MindSpore's operators: {reason}"
    if isinstance(model, NativeModel):
        return f"answers by {model.describe()}"
    library = find_library().library
    assert library is not None
    return f"answers by {describe_library(library, model.config.compute_type)}"


def reason_for_mindspore(model: SparkForCausalLM | NativeModel) -> str | None:
    """Why `make_decoder` does not choose the native one for a model, or None when it does."""
    if isinstance(model, NativeModel):
        return None
    found = find_library()
    return why_not(model) or (found.reason if found.library is None else None)


def why_not(model: SparkForCausalLM) -> str | None:
    """Why the library cannot compute a model that MindSpore holds, or None when it can."""
    from spark13b.model.causal_lm import memory_of
    from spark13b.model.device import device

    problem = answering_problem(model.config, device(), model.setup.mesh.model.size)
    if problem is not None:
        return problem
    arrays = {name: memory_of(parameter) for name, parameter in model.weights().items()}
    if any(array is None for array in arrays.values()):
        return "the weights are not in memory of their own"
    if any(array.dtype != np.float32 for array in arrays.values() if array is not None):
        return "the weights that MindSpore holds are not all float32"
    return None


def native_model_of(model: SparkForCausalLM, library: Library) -> NativeModel:
    """A model for which `why_not` has no answer, its weights where MindSpore holds them; `model` must be kept.

    Adapters are those of now: what MindSpore changes later is not seen.
    """
    from spark13b.model.causal_lm import memory_of

    arrays = {name: memory_of(parameter) for name, parameter in model.weights().items()}
    adapters, lora = {name: one.asnumpy().copy() for name, one in model.adapters().items()}, model.setup.lora
    return NativeModel(
        model.config,
        {name: one for name, one in arrays.items() if one is not None},
        library,
        None if lora is None else NativeAdapters(lora, adapters),
    )


class NativeDecoder:
    """A decoder whose caches are NumPy's, of the compute type."""

    checks_drafts = True

    def __init__(self, model: NativeModel, slots: int, seats: int, chunk: int) -> None:
        self.config, self.slots, self.seats, self.chunk = model.config, slots, seats, chunk
        self.batch = max(seats, 1)
        self.graphs = 0  # nothing is compiled
        self._model, self._threads = model, thread_count()
        self._room = self.config.seq_length if slots == self.config.cache_slots else slots  # tokens of a text
        self._rings: dict[int, np.ndarray] = {}  # of a seat: each layer's keys and values (2L, H*slots, D)
        self._addresses: dict[int, np.ndarray] = {}  # the same as (layers, 2) addresses
        self._written: dict[int, int] = {}  # of a seat: so many slots, or fewer, have something

    def read(self, ids: Sequence[int], start: int) -> np.ndarray:
        return self.logits(ids, start, 1)[0]

    def logits(self, ids: Sequence[int], start: int, wanted: int) -> np.ndarray:
        """`read`, with the logits (wanted, V) after the last `wanted` tokens."""
        count = len(ids)
        if not 1 <= count <= self.chunk or start + count > self._room:
            raise ValueError(f"{count} tokens at {start}: there is room for {self.chunk} at once, {self._room} in all")
        self._write(READING, start + count)
        return prefill(
            self._model.library,
            self._model.native,
            self.slots,
            self.config.sparse_local_size,
            np.array(ids, np.int32),
            start,
            self._ring(READING)[1],
            threads=self._threads,
            wanted=wanted,
            rounds=self._model.rounds,
            halves=self._model.rounds,
        )

    def step(self, seats: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        if max(positions) >= self._room:
            raise ValueError(f"position {max(positions)}: there is room for {self._room} tokens")
        for seat, position in zip(seats, positions, strict=True):
            self._write(seat, position + 1)
        rings = np.stack([self._ring(seat)[1] for seat in seats])
        ids, places = np.array(tokens, np.int32), np.array(positions, np.int32)
        return decode_step(
            self._model.library,
            self._model.native,
            self.slots,
            ids,
            places,
            rings,
            threads=self._threads,
            halves=self._model.rounds,
        )

    def copy(self, source: int, target: int) -> None:
        count = self._written.get(source, 0)  # what lies behind is nobody's
        layers, _, size = self._ring(source)[0].shape
        into, out = (
            self._ring(seat)[0].reshape(layers, self.config.num_heads, self.slots, size)[:, :, :count]
            for seat in (target, source)
        )
        np.copyto(into, out)
        self._written[target] = count

    def _write(self, seat: int, end: int) -> None:
        """The slots before position `end` are about to be written to, or all when the text fills its ring."""
        self._written[seat] = min(max(end, self._written.get(seat, 0)), self.slots)

    def _ring(self, seat: int) -> tuple[np.ndarray, np.ndarray]:
        if seat not in self._rings:
            if not 0 <= seat <= self.seats:
                raise ValueError(f"seat {seat} of {self.seats}")
            shape = (2 * self.config.num_layers, self.config.num_heads * self.slots, self.config.head_size)
            ring = np.zeros(shape, BFLOAT16 if self._model.rounds else np.float32)
            self._addresses[seat] = addresses_of(list(ring)).reshape(-1, 2)
            self._rings[seat] = ring  # last: Ctrl-C may come between two lines
        return self._rings[seat], self._addresses[seat]
