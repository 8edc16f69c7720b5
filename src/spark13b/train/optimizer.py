"""AdamWeightDecayX, the original's AdamW with float32 state (shared/SPEC.md, section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mindspore
from mindspore import Parameter, ParameterTuple, nn, ops

from spark13b.config.sections import OptimizerConfig


class AdamW(nn.Cell):
    """p = p (1 - lr wd) - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps), in place.

    The corrected rate and the decay arrive as numbers, so that the graph knows neither t nor the schedule. Norms and
    biases are not decayed.
    """

    def __init__(self, parameters: Sequence[Parameter], config: OptimizerConfig) -> None:
        super().__init__()
        self.parameters = ParameterTuple(parameters)
        self.m = ParameterTuple([_state(parameter, "adam_m") for parameter in parameters])
        self.v = ParameterTuple([_state(parameter, "adam_v") for parameter in parameters])
        self.decayed = tuple(is_decayed(parameter.name) for parameter in parameters)
        self.whole = tuple(parameter.dtype == mindspore.float32 for parameter in parameters)
        self.beta1, self.beta2, self.epsilon = config.beta1, config.beta2, config.epsilon
        self.fused = ops.AdamWeightDecay()

    def construct(self, gradients: tuple[Any, ...], keep: Any, rate: Any, decay: Any) -> None:
        """Update with float32 `gradients`, unless `keep` (float32) is 0: then nothing changes.

        `rate` and `decay` (float32) are those of `corrected`.
        """
        beta1 = 1.0 - keep * (1.0 - self.beta1)  # 1 leaves m and v as they are
        beta2 = 1.0 - keep * (1.0 - self.beta2)
        rate = rate * keep
        for index, gradient in enumerate(gradients):
            parameter, m, v = self.parameters[index], self.m[index], self.v[index]
            own_decay = decay if self.decayed[index] else decay * 0.0
            if self.whole[index]:
                self.fused(parameter, m, v, rate, beta1, beta2, self.epsilon, own_decay, gradient)
            else:  # the update in float32, then the parameter's type
                new_m = beta1 * m + (1.0 - beta1) * gradient
                new_v = beta2 * v + (1.0 - beta2) * gradient * gradient
                old = ops.cast(parameter, mindspore.float32)
                new = old - rate * (own_decay * old + new_m / (ops.sqrt(new_v) + self.epsilon))
                ops.assign(m, new_m)
                ops.assign(v, new_v)
                ops.assign(parameter, ops.cast(new, parameter.dtype))


def corrected(config: OptimizerConfig, lr: float, updates: int) -> tuple[float, float]:
    """The rate and decay of update number `updates` (from 1) for `AdamW`.

    MindSpore's kernel computes p - rate (m / (sqrt(v) + eps) + decay p); with rate = lr sqrt(1 - b2^t) / (1 - b1^t) and
    decay = lr wd / rate that is the formula above.
    """
    rate = lr * math.sqrt(1.0 - config.beta2**updates) / (1.0 - config.beta1**updates)
    return rate, (lr * config.weight_decay / rate if rate else 0.0)


def is_decayed(name: str) -> bool:
    """Whether weight decay applies to a parameter: not to LayerNorm and biases."""
    return not name.endswith((".gamma", ".beta", ".bias"))


def _state(parameter: Parameter, prefix: str) -> Parameter:
    zeros = ops.zeros(parameter.shape, mindspore.float32)
    return Parameter(zeros, name=f"{prefix}.{parameter.name}", requires_grad=False)
