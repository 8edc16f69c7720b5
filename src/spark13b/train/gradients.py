"""Gradients of this process -> gradients of the whole batch and model, and their global norm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mindspore
from mindspore import nn, ops

from spark13b.model.collectives import all_reduce, reduce_scatter
from spark13b.model.mesh import Mesh
from spark13b.model.names import is_norm, model_axis

# Each process of the model group adds its own summand to these outputs, or computes them from its own part of the
# inputs: its gradient is a summand, too. The bias is added by the first process alone.
_SUMMANDS = re.compile(
    r"\.(out_proj|fc2)\.(bias|mindpet_delta_lora_b)$|\.(q_proj|k_proj|v_proj|fc0|fc1)\.mindpet_delta_lora_a$"
)


@dataclass(frozen=True)
class Placement:
    """How one parameter lies on the processes.

    `cut`: each process of the model group holds a part. `partial`: all hold the whole, and their gradients are
    summands. `sharded`: the optimizer's state is divided by rows over the data group.
    """

    cut: bool
    partial: bool
    sharded: bool


def placement(name: str, shape: tuple[int, ...], mesh: Mesh, optimizer_shard: bool) -> Placement:
    """The placement of the parameter of which this process holds `shape`; the same rule as `ckpt.layout.cut_of`."""
    divided = mesh.model.size > 1
    cut = divided and model_axis(name, len(shape)) is not None
    partial = divided and (_SUMMANDS.search(name) is not None or (mesh.sequence_parallel and is_norm(name)))
    sharded = optimizer_shard and mesh.data.size > 1 and shape[0] % mesh.data.size == 0
    return Placement(cut, partial, sharded)


class Reduce(nn.Cell):
    """Sum the gradients over model and data groups; of a sharded parameter this process's rows are left."""

    def __init__(self, placements: Sequence[Placement], mesh: Mesh) -> None:
        super().__init__()
        self.placements = tuple((one.partial, one.sharded) for one in placements)
        self.model_sum, self.data_sum = all_reduce(mesh.model), all_reduce(mesh.data)
        self.data_scatter = reduce_scatter(mesh.data)

    def construct(self, gradients: Any) -> Any:
        reduced = []
        for index, gradient in enumerate(gradients):
            partial, sharded = self.placements[index]
            if partial:
                gradient = self.model_sum(gradient)
            reduced.append(self.data_scatter(gradient) if sharded else self.data_sum(gradient))
        return reduced


class GlobalNorm(nn.Cell):
    """The norm over all parameters of the model, each counted once, from reduced gradients."""

    def __init__(self, placements: Sequence[Placement], mesh: Mesh) -> None:
        super().__init__()
        self.cut = tuple(one.cut for one in placements)
        self.sharded = tuple(one.sharded for one in placements)
        self.divided, self.shards = mesh.model.size > 1, any(self.sharded)
        self.model_sum, self.data_sum = all_reduce(mesh.model), all_reduce(mesh.data)

    def construct(self, gradients: Any) -> Any:
        whole, cut, sharded, cut_sharded = [], [], [], []
        for index, gradient in enumerate(gradients):
            gradient = ops.cast(gradient, mindspore.float32)
            # first over the last axis: a sum over all axes at once is many times slower on a CPU
            square = (gradient * gradient).sum(-1).sum()
            if self.cut[index] and self.sharded[index]:
                cut_sharded.append(square)
            elif self.cut[index]:
                cut.append(square)
            elif self.sharded[index]:
                sharded.append(square)
            else:
                whole.append(square)
        if not self.divided and not self.shards:
            return ops.sqrt(ops.addn(whole))
        zero = gradients[0].reshape((-1,))[0].astype(mindspore.float32) * 0.0
        parts = ops.stack([ops.addn([zero, *cut]), ops.addn([zero, *cut_sharded])])
        if self.divided:
            parts = self.model_sum(parts)
        shared = ops.addn([zero, *sharded]) + parts[1]
        if self.shards:
            shared = self.data_sum(shared.reshape((1,)))[0]
        return ops.sqrt(ops.addn([zero, *whole]) + parts[0] + shared)
