"""Decode steps by the native library: prompts are read by MindSpore's graphs, and tokens follow without them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark13b.infer.decoder import READING, Decoder
from spark13b.model.causal_lm import SparkForCausalLM, memory_of
from spark13b.model.device import device
from spark13b.native.library import Library, Weights, addresses_of, find_library, thread_count


def make_decoder(model: SparkForCausalLM, slots: int, seats: int, chunk: int) -> Decoder:
    """The decoder that answers fastest here: the native one where it can, else MindSpore's."""
    library = find_library().library
    if library is None or why_not(model) is not None:
        return Decoder(model, slots, seats, chunk)
    return NativeDecoder(model, slots, seats, chunk, library)


def describe(model: SparkForCausalLM) -> str:
    """Which decoder `make_decoder` chooses for a model, and why, in a sentence."""
    found = find_library()
    reason = why_not(model) or found.reason
    if found.library is None or reason:
        return f"decode steps by MindSpore: {reason}"
    return f"decode steps by the native library ({found.library.describe()})"


def why_not(model: SparkForCausalLM) -> str | None:
    """Why the library cannot compute this model's steps, or None when it can."""
    config = model.config
    types = {config.compute_type, config.param_init_type, config.embedding_init_type, config.layernorm_compute_type}
    if device() != "cpu":
        return "the device is no CPU"
    if types != {"float32"}:
        return f"the native library computes float32 only, the model is {' and '.join(sorted(types))}"
    if model.setup.mesh.model.size > 1:
        return "several processes share the model"
    if model.setup.lora is not None:
        return "adapters are computed beside the weights"
    if any(memory_of(parameter) is None for parameter in model.weights().values()):
        return "the weights are not in memory of their own"
    return None


class NativeDecoder(Decoder):
    """A decoder whose steps and copies are the library's; a model for which `why_not` has no answer.

    The reading seat's rings are MindSpore's, and are written in place; those of the other seats are NumPy's.
    """

    def __init__(self, model: SparkForCausalLM, slots: int, seats: int, chunk: int, library: Library) -> None:
        super().__init__(model, slots, seats, chunk)
        self._library, self._threads = library, thread_count()
        turn = model.transformer.transformer  # cos and sin as the prompts' graphs use them
        arrays = [memory_of(parameter) for parameter in model.weights().values()]
        self._weights = Weights(
            [array for array in arrays if array is not None],
            np.ascontiguousarray(turn.cos.asnumpy()),
            np.ascontiguousarray(turn.sin.asnumpy()),
            self.config.num_heads,
            self.config.layernorm_epsilon,
        )
        self._held: dict[int, list[np.ndarray]] = {}  # of a seat, each layer's keys and values (H*slots, D)
        self._addresses: dict[int, np.ndarray] = {}  # the same as (layers, 2) addresses

    def read(self, ids: Sequence[int], start: int) -> np.ndarray:
        logits = super().read(ids, start)
        self._held.pop(READING, None)  # a graph has run: look anew where its rings lie
        return logits

    def step(self, seats: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        if max(positions) >= self._room:
            raise ValueError(f"position {max(positions)}: there is room for {self._room} tokens")
        rings = np.stack([self._rings_of(seat)[1] for seat in seats])
        ids, places = np.array(tokens, np.int32), np.array(positions, np.int32)
        return self._library.step(self._weights, self.slots, ids, places, rings, threads=self._threads)

    def copy(self, source: int, target: int) -> None:
        for old, new in zip(self._rings_of(target)[0], self._rings_of(source)[0], strict=True):
            np.copyto(old, new)

    def _rings_of(self, seat: int) -> tuple[list[np.ndarray], np.ndarray]:
        if seat not in self._held:
            self._held[seat] = self._reading_rings() if seat == READING else self._new_rings(seat)
            self._addresses[seat] = addresses_of(self._held[seat]).reshape(-1, 2)
        return self._held[seat], self._addresses[seat]

    def _reading_rings(self) -> list[np.ndarray]:
        ring = self._ring(READING)
        found = [memory_of(one) for pair in zip(ring.keys, ring.values, strict=True) for one in pair]
        assert all(one is not None for one in found), "on a CPU a parameter is its memory"
        return [one for one in found if one is not None]

    def _new_rings(self, seat: int) -> list[np.ndarray]:
        if not 1 <= seat <= self.seats:
            raise ValueError(f"seat {seat} of {self.seats}")
        shape = (2 * self.config.num_layers, self.config.num_heads * self.slots, self.config.head_size)
        return list(np.zeros(shape, np.float32))
