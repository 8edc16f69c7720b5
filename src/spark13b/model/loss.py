"""The training loss: masked mean of the negative log likelihood (shared/SPEC.md, section 3)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from mindspore import nn

from spark13b.model.cross_entropy import cross_entropy
from spark13b.model.mesh import ALONE, Mesh
from spark13b.model.transformer import SparkModel

Alignment = Literal["target", "input"]


TINY = 1e-5  # keeps a batch without anything to learn from dividing by zero


class Loss(nn.Cell):
    """sum(mask * nll) / (sum(mask) + 1e-5) of a model, softmax in float32."""

    def __init__(self, model: SparkModel, mesh: Mesh = ALONE) -> None:
        super().__init__(auto_prefix=False)
        self.total = TotalLoss(model, mesh)

    def construct(self, inputs: Any, targets: Any, mask: Any) -> Any:
        """inputs, targets (B, T) int32, mask (B, T) float32 by target -> scalar float32"""
        return self.total(inputs, targets, mask) / (mask.sum(-1).sum() + TINY)


class TotalLoss(nn.Cell):
    """sum(mask * nll): what batches that are learned together add up to."""

    def __init__(self, model: SparkModel, mesh: Mesh = ALONE) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.cross_entropy = cross_entropy(mesh)

    def construct(self, inputs: Any, targets: Any, mask: Any, key: Any = None) -> Any:
        """inputs, targets (B, T) int32, mask (B, T) float32 by target, `key` of dropout -> scalar float32"""
        hidden, _, _ = self.model(inputs, key)
        return self.of_hidden(hidden, targets, mask)

    def of_hidden(self, hidden: Any, targets: Any, mask: Any) -> Any:
        """The same from the model's output, hidden (N, C)."""
        logits = self.model.logits(hidden, self.model.table())
        return (self.cross_entropy(logits, targets.reshape((-1,))) * mask.reshape((-1,))).sum()


def align(loss_mask: np.ndarray, alignment: Alignment) -> np.ndarray:
    """The mask of the targets, (B, T), from that of the row's tokens, (B, T+1).

    `target`: a token is learned when its own mask is 1. `input`: the original's, by the token before it.
    """
    if alignment not in ("target", "input"):
        raise ValueError(f"alignment must be 'target' or 'input', not {alignment!r}")
    return loss_mask[:, 1:] if alignment == "target" else loss_mask[:, :-1]
