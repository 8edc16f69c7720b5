"""What the devices of a run say to each other in one step: how many collectives, of how many bytes.

Counted as `model/collectives.py`, `model/cross_entropy.py`, `train/gradients.py` and `train/step.py` make them. The
bytes of one are those of the whole array: what AllReduce sums, AllGather puts together, ReduceScatter divides. On a CPU
all of them are sums of that array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from spark13b.config.preset import Preset
from spark13b.train.parts import BYTES, Part, Stored, part_of, stored_parameters

Kind = Literal["AllReduce", "AllGather", "ReduceScatter"]
Among = Literal["model", "data"]  # the group: devices that share a copy of the model, or that see different rows


@dataclass(frozen=True)
class Collectives:
    """Collectives of one sort, of each device in one step: what for, how many, bytes of all of them together."""

    what: str
    kind: Kind
    group: Among
    count: int
    bytes: int


def step_collectives(preset: Preset, tokens: int) -> list[Collectives]:
    """The collectives of a training step on rows of `tokens` tokens; none for a single device."""
    found: list[Collectives] = []
    if preset.parallel.model_parallel > 1:
        found += _of_model(preset, part_of(preset, tokens))
    trained = [one for one in stored_parameters(preset) if one.trained]
    found += _of_gradients(preset, trained)
    return [one for one in found if one.count]


def prefill_collectives(preset: Preset) -> list[Collectives]:
    """Those of reading a prompt that fills the context."""
    if preset.parallel.model_parallel == 1:
        return []
    part = part_of(preset, preset.model.seq_length, batch=1)
    rows = part.batch_tokens * part.hidden * part.compute
    count = 2 * part.layers + 1
    return [Collectives("residual stream, forward", "AllReduce", "model", count, count * rows)]


def _of_model(preset: Preset, part: Part) -> Iterator[Collectives]:
    """Those around attention, MLP, embedding, output projection and loss: of rows (N, C), and of N numbers."""
    train, layers = preset.train, part.layers
    rows = part.batch_tokens * part.hidden * part.compute
    batches = train.accumulation_steps
    # a recomputed layer gathers once more, and sums attention's output again; that of the MLP is no input of a gradient
    again = layers if train.recompute else 0
    back = 2 * layers + (preset.task != "lora")  # below the first adapter no gradient is needed

    def of_rows(what: str, kind: Kind, count: int) -> Collectives:
        return Collectives(what, kind, "model", count * batches, count * batches * rows)

    if preset.parallel.sequence_parallel:
        yield of_rows("rows into attention and MLP, forward", "AllGather", 2 * layers + 2 * again + 1)
        yield of_rows("rows out of embedding, attention and MLP, forward", "ReduceScatter", 2 * layers + again + 1)
        yield of_rows("rows into attention and MLP, backward", "ReduceScatter", back)
        yield of_rows("rows out of embedding, attention and MLP, backward", "AllGather", back)
    else:
        yield of_rows("residual stream, forward", "AllReduce", 2 * layers + again + 1)
        yield of_rows("residual stream, backward", "AllReduce", back)
        if train.recompute and train.recompute_slice_activations:
            yield of_rows("sliced activations, forward", "AllGather", layers + again + 1)
            yield of_rows("sliced activations, backward", "AllGather", back - layers)
    yield Collectives("loss", "AllReduce", "model", 3 * batches, 3 * batches * part.batch_tokens * 4)


def _of_gradients(preset: Preset, trained: list[Stored]) -> Iterator[Collectives]:
    """Those after the backward pass: gradients, their norm, the parameters that come back, and the count of targets."""
    accumulated = preset.train.accumulation_steps > 1
    shards = any(one.placement.sharded for one in trained)

    def of(what: str, kind: Kind, group: Among, chosen: Iterable[Stored], width: int | None = None) -> Collectives:
        sizes = [one.size * (width or BYTES[one.type]) for one in chosen]
        return Collectives(what, kind, group, len(sizes), sum(sizes))

    width = 4 if accumulated else None  # float32 sums
    yield of("partial gradients", "AllReduce", "model", [one for one in trained if one.placement.partial], width)
    if preset.parallel.data_parallel > 1:
        sharded = [one for one in trained if one.placement.sharded]
        yield of("gradients", "AllReduce", "data", [one for one in trained if not one.placement.sharded], width)
        yield of("gradients", "ReduceScatter", "data", sharded, width)
        yield of("updated parameters", "AllGather", "data", sharded)
        scalars = 2 * preset.train.accumulation_steps + shards
        yield Collectives("loss, targets and gradient norm", "AllReduce", "data", scalars, 4 * scalars)
    if preset.parallel.model_parallel > 1:
        yield Collectives("gradient norm", "AllReduce", "model", 1, 8)
