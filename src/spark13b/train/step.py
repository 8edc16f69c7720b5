"""One training step as one graph: loss, gradients, clipping, update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore
from mindspore import Parameter, ParameterTuple, nn, ops

from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.loss import Loss
from spark13b.train.optimizer import AdamW


class TrainStep(nn.Cell):
    """inputs, targets, mask (B, T) -> loss and global gradient norm; updates parameters and optimizer in place.

    With `guard` (for a dynamic loss scale) gradients that are not finite change nothing; the norm tells.
    """

    def __init__(
        self,
        model: SparkForCausalLM,
        parameters: Sequence[Parameter],
        optimizer: AdamW,
        clip_norm: float | None,
        guard: bool = False,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.guard = guard
        self.value_and_gradients = ops.value_and_grad(
            _ScaledLoss(model), grad_position=None, weights=ParameterTuple(parameters)
        )
        self.mul_no_nan = ops.MulNoNan()

    def construct(self, inputs: Any, targets: Any, mask: Any, rate: Any, decay: Any, scale: Any) -> tuple[Any, Any]:
        """`rate`, `decay`: see `optimizer.corrected`; `scale`: the loss scale, 1 for none. Scalars float32."""
        scaled, gradients = self.value_and_gradients(inputs, targets, mask, scale)
        gradients = [ops.cast(gradient, mindspore.float32) for gradient in gradients]
        # first over the last axis: a sum over all axes at once is many times slower on a CPU
        squares = [(gradient * gradient).sum(-1).sum() for gradient in gradients]
        norm = ops.sqrt(ops.addn(squares)) / scale
        factor = 1.0 / scale
        if self.clip_norm is not None:
            factor = factor * (self.clip_norm / (ops.maximum(norm, self.clip_norm) + 1e-6))
        keep = ops.ones_like(scale)
        if self.guard:
            keep = ops.cast(ops.isfinite(norm), mindspore.float32)
            factor = self.mul_no_nan(factor, keep)  # 0 times nan is 0 here
            gradients = [self.mul_no_nan(gradient, factor) for gradient in gradients]
        else:
            gradients = [gradient * factor for gradient in gradients]
        # Behind the norm, and so behind every gradient: an update in place must not overtake the backward pass, which
        # still reads the weights. MindSpore keeps this order by itself only for what it sees as data.
        self.optimizer(tuple(gradients), keep, ops.depend(rate, norm), decay)
        return scaled / scale, norm


class _ScaledLoss(nn.Cell):
    def __init__(self, model: SparkForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.loss = Loss(model.transformer)

    def construct(self, inputs: Any, targets: Any, mask: Any, scale: Any) -> Any:
        return self.loss(inputs, targets, mask) * scale
