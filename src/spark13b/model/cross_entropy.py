"""The negative log likelihood of each target, from logits that may be divided over processes by the vocabulary."""

from __future__ import annotations

from typing import Any

import mindspore
from mindspore import nn, ops

from spark13b.model.collectives import LargestOf, SumForward
from spark13b.model.mesh import Mesh


def cross_entropy(mesh: Mesh) -> nn.Cell:
    """The cell for this mesh: logits (N, V) float32 (this process's V), targets (N,) -> nll (N,) float32."""
    return DividedCrossEntropy(mesh) if mesh.model.size > 1 else CrossEntropy()


class CrossEntropy(nn.Cell):
    """All logits in one process."""

    def construct(self, logits: Any, targets: Any) -> Any:
        log_probability = ops.log_softmax(logits, -1)
        return -ops.gather_elements(log_probability, 1, targets.reshape((-1, 1))).reshape((-1,))


class DividedCrossEntropy(nn.Cell):
    """Each process has the logits of its part of the vocabulary: log sum exp and the target's logit are summed."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.index = mesh.model.index
        self.largest = LargestOf(mesh.model)
        self.total, self.picked = SumForward(mesh.model), SumForward(mesh.model)

    def construct(self, logits: Any, targets: Any) -> Any:
        largest = self.largest(logits.max(-1))
        shifted = logits - largest.reshape((-1, 1))
        total = self.total(ops.exp(shifted).sum(-1))
        place = targets - self.index * logits.shape[1]
        known = ops.logical_and(place >= 0, place < logits.shape[1])
        own = ops.gather_elements(shifted, 1, ops.select(known, place, place * 0).reshape((-1, 1))).reshape((-1,))
        return ops.log(total) - self.picked(own * ops.cast(known, mindspore.float32))
