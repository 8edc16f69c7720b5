"""Gradients of this process -> gradients of the whole batch and model, and their global norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore
from mindspore import nn, ops

from spark13b.model.collectives import all_reduce, reduce_scatter
from spark13b.model.mesh import Mesh
from spark13b.train.placement import Placement


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
