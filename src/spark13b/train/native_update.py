"""Clipping and AdamW by the native library, one operator for all parameters."""

from __future__ import annotations

from typing import Any

import mindspore
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from spark13b.model.native_training import float_bits
from spark13b.native.library import Library, thread_count
from spark13b.train.optimizer import AdamW


class NativeUpdate(nn.Cell):
    """Gradients -> their global norm; updates parameters and optimizer in place, as the step's own graph does.

    For float32 parameters that this process has whole and alone, see `can_update`. With `guard` gradients that are not
    finite change nothing.
    """

    def __init__(self, library: Library, optimizer: AdamW, clip_norm: float | None, guard: bool) -> None:
        super().__init__(auto_prefix=False)
        self.state = ParameterTuple([*optimizer.parameters, *optimizer.m, *optimizer.v])
        settings = (optimizer.beta1, optimizer.beta2, optimizer.epsilon, clip_norm or 0.0)
        numbers = [thread_count(), library.level, *map(float_bits, settings), int(guard), *map(int, optimizer.decayed)]
        self.numbers = Tensor(np.array(numbers, np.int64))
        self.operator = ops.Custom(f"{library.path}:spark_update", (1,), mindspore.float32, "aot")

    def construct(self, gradients: Any, rate: Any, decay: Any, scale: Any) -> Any:
        scalars = (rate.reshape((1,)), decay.reshape((1,)), scale.reshape((1,)))
        return self.operator(self.numbers, *scalars, *self.state, *gradients)[0]


def can_update(optimizer: AdamW) -> bool:
    """Whether `NativeUpdate` can take the optimizer's place: all is float32, and nothing is another process's."""
    return all(optimizer.whole) and not any(optimizer.sharded) and optimizer.mesh.data.size == 1
