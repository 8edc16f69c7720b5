"""The negative log likelihood of each target, from logits that may be divided over processes by the vocabulary."""

from __future__ import annotations

from typing import Any

import mindspore
from mindspore import nn, ops

from spark13b.model.collectives import LargestOf, sum_forward
from spark13b.model.mesh import Mesh


def cross_entropy(mesh: Mesh) -> nn.Cell:
    """The cell for this mesh: logits (N, V) float32 (this process's V), targets (N,) -> nll (N,) float32."""
    return DividedCrossEntropy(mesh) if mesh.model.size > 1 else CrossEntropy()


class CrossEntropy(nn.Cell):
    """All logits in one process."""

    def construct(self, logits: Any, targets: Any) -> Any:
        log_probability = ops.log_softmax(logits, -1)
        return -ops.gather_elements(log_probability, 1, targets.reshape((-1, 1))).reshape((-1,))


def hits(mesh: Mesh) -> nn.Cell:
    """The cell for this mesh: logits (N, V), targets (N,) -> 1.0 where no logit is above the target's, else 0.0."""
    return _DividedHits(mesh) if mesh.model.size > 1 else _Hits()


class DividedCrossEntropy(nn.Cell):
    """Each process has the logits of its part of the vocabulary: log sum exp and the target's logit are summed."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.index = mesh.model.index
        self.largest = LargestOf(mesh.model)
        self.total, self.picked = sum_forward(mesh.model), sum_forward(mesh.model)

    def construct(self, logits: Any, targets: Any) -> Any:
        largest = self.largest(logits.max(-1))
        shifted = logits - largest.reshape((-1, 1))
        total = self.total(ops.exp(shifted).sum(-1))
        return ops.log(total) - self.picked(_own_target(shifted, targets, self.index))


class _Hits(nn.Cell):
    def construct(self, logits: Any, targets: Any) -> Any:
        own = ops.gather_elements(logits, 1, targets.reshape((-1, 1))).reshape((-1,))
        return ops.cast(own >= logits.max(-1), mindspore.float32)


class _DividedHits(nn.Cell):
    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.index = mesh.model.index
        self.largest, self.picked = LargestOf(mesh.model), sum_forward(mesh.model)

    def construct(self, logits: Any, targets: Any) -> Any:
        own = self.picked(_own_target(logits, targets, self.index))
        return ops.cast(own >= self.largest(logits.max(-1)), mindspore.float32)


def _own_target(logits: Any, targets: Any, index: int) -> Any:
    """The target's logit where it is in part `index` of the vocabulary, else 0."""
    place = targets - index * logits.shape[1]
    known = ops.logical_and(place >= 0, place < logits.shape[1])
    own = ops.gather_elements(logits, 1, ops.select(known, place, place * 0).reshape((-1, 1))).reshape((-1,))
    return own * ops.cast(known, mindspore.float32)
