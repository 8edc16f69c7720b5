"""The training loss: masked mean of the negative log likelihood (shared/SPEC.md, section 3)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from mindspore import nn, ops

from spark13b.model.transformer import SparkModel

Alignment = Literal["target", "input"]


class Loss(nn.Cell):
    """sum(mask * nll) / (sum(mask) + 1e-5) of a model, softmax in float32."""

    def __init__(self, model: SparkModel) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, inputs: Any, targets: Any, mask: Any) -> Any:
        """inputs, targets (B, T) int32, mask (B, T) float32 by target -> scalar float32"""
        hidden, _, _ = self.model(inputs)
        logits = self.model.logits(hidden.reshape((-1, hidden.shape[-1])), self.model.table())
        log_probability = ops.log_softmax(logits, -1)
        picked = ops.gather_elements(log_probability, 1, targets.reshape((-1, 1))).reshape((-1,))
        weight = mask.reshape((-1,))
        return -(picked * weight).sum() / (weight.sum() + 1e-5)


def align(loss_mask: np.ndarray, alignment: Alignment) -> np.ndarray:
    """The mask of the targets, (B, T), from that of the row's tokens, (B, T+1).

    `target`: a token is learned when its own mask is 1. `input`: the original's, by the token before it.
    """
    if alignment not in ("target", "input"):
        raise ValueError(f"alignment must be 'target' or 'input', not {alignment!r}")
    return loss_mask[:, 1:] if alignment == "target" else loss_mask[:, :-1]
