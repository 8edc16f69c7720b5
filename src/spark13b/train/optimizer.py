"""AdamWeightDecayX, the original's AdamW with float32 state (shared/SPEC.md, section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops

from spark13b.config.sections import OptimizerConfig
from spark13b.model.causal_lm import set_parameter
from spark13b.model.collectives import all_gather
from spark13b.model.device import device
from spark13b.model.mesh import ALONE, Mesh
from spark13b.train.cpu_adam import CpuAdamWeightDecay
from spark13b.train.placement import Placement


class AdamW(nn.Cell):
    """p = p (1 - lr wd) - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps), in place.

    The corrected rate and the decay arrive as numbers, so that the graph knows neither t nor the schedule. Norms and
    biases are not decayed. Of a parameter whose placement is sharded this process keeps and computes its rows, and the
    data group puts the new parameter together. With `master_weights` parameters of 16 bits have float32 copies, from
    which they are rounded after every step.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        config: OptimizerConfig,
        placements: Sequence[Placement] | None = None,
        mesh: Mesh = ALONE,
    ) -> None:
        super().__init__()
        self.parameters = ParameterTuple(parameters)
        self.sharded = tuple(one.sharded for one in placements) if placements else (False,) * len(parameters)
        self.mesh = mesh
        shapes = [self._own_shape(index) for index in range(len(parameters))]
        self.m = ParameterTuple([_state(one, "adam_m", shape) for one, shape in zip(parameters, shapes, strict=True)])
        self.v = ParameterTuple([_state(one, "adam_v", shape) for one, shape in zip(parameters, shapes, strict=True)])
        self.decayed = tuple(is_decayed(parameter.name) for parameter in parameters)
        self.whole = tuple(parameter.dtype == mindspore.float32 for parameter in parameters)
        mastered = [index for index, whole in enumerate(self.whole) if config.master_weights and not whole]
        self.mastered = tuple(mastered)
        # index of a parameter -> that of its master, or -1
        self.master_of = tuple(mastered.index(at) if at in mastered else -1 for at in range(len(parameters)))
        self.masters = ParameterTuple([_state(parameters[index], "master", shapes[index]) for index in mastered])
        self.beta1, self.beta2, self.epsilon = config.beta1, config.beta2, config.epsilon
        self.fused = CpuAdamWeightDecay() if device() == "cpu" else ops.AdamWeightDecay()
        self.gather = all_gather(mesh.data)
        for index, master in zip(mastered, self.masters, strict=True):
            self._set_master(index, master, parameters[index].asnumpy())

    def construct(self, gradients: tuple[Any, ...], keep: Any, rate: Any, decay: Any) -> None:
        """Update with float32 `gradients`, unless `keep` (float32) is 0: then nothing changes.

        `rate` and `decay` (float32) are those of `corrected`. The gradient of a sharded parameter is that of its rows.
        """
        beta1 = 1.0 - keep * (1.0 - self.beta1)  # 1 leaves m and v as they are
        beta2 = 1.0 - keep * (1.0 - self.beta2)
        rate = rate * keep
        for index, gradient in enumerate(gradients):
            parameter, m, v = self.parameters[index], self.m[index], self.v[index]
            own_decay = decay if self.decayed[index] else decay * 0.0
            if self.whole[index] and not self.sharded[index]:
                self.fused(parameter, m, v, rate, beta1, beta2, self.epsilon, own_decay, gradient)
                continue
            if self.master_of[index] >= 0:
                master = self.masters[self.master_of[index]]
                done = self.fused(master, m, v, rate, beta1, beta2, self.epsilon, own_decay, gradient)
                new = ops.depend(master, done)
            else:  # the update in float32, then the parameter's type
                own = parameter
                if self.sharded[index]:
                    rows = m.shape[0]
                    own = parameter[self.mesh.data.index * rows : (self.mesh.data.index + 1) * rows]
                new_m = beta1 * m + (1.0 - beta1) * gradient
                new_v = beta2 * v + (1.0 - beta2) * gradient * gradient
                old = ops.cast(own, mindspore.float32)
                new = old - rate * (own_decay * old + new_m / (ops.sqrt(new_v) + self.epsilon))
                ops.assign(m, new_m)
                ops.assign(v, new_v)
            new = ops.cast(new, parameter.dtype)
            ops.assign(parameter, self.gather(new) if self.sharded[index] else new)

    def state(self) -> list[Parameter]:
        """All that a checkpoint must keep: m, v and masters, this process's part."""
        return [*self.m, *self.v, *self.masters]

    def part_of(self, name: str, array: np.ndarray) -> np.ndarray:
        """What this process keeps of the whole state `name` (adam_m.NAME, for example); a view."""
        of = name.partition(".")[2]
        own = self.mesh.part_of(of, array)
        index = next(at for at, parameter in enumerate(self.parameters) if parameter.name == of)
        return own[self.mesh.data.part(own.shape[0])] if self.sharded[index] else own

    def take_masters(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Begin the masters with whole weights, name -> array, which may be finer than the parameters are."""
        for index, master in zip(self.mastered, self.masters, strict=True):
            name = self.parameters[index].name
            self._set_master(index, master, self.mesh.part_of(name, np.asarray(arrays[name])))

    def _set_master(self, index: int, master: Parameter, own: np.ndarray) -> None:
        rows = own[self.mesh.data.part(own.shape[0])] if self.sharded[index] else own
        set_parameter(master, np.asarray(rows, np.float32))

    def _own_shape(self, index: int) -> tuple[int, ...]:
        shape = tuple(self.parameters[index].shape)
        return (shape[0] // self.mesh.data.size, *shape[1:]) if self.sharded[index] else shape


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


def _state(parameter: Parameter, prefix: str, shape: tuple[int, ...]) -> Parameter:
    zeros = ops.zeros(shape, mindspore.float32)
    return Parameter(zeros, name=f"{prefix}.{parameter.name}", requires_grad=False)
