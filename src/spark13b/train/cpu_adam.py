"""AdamW's update of one float32 parameter on a CPU, made of MindSpore's vectorized Adam.

Its AdamWeightDecay computes number by number in double there: 4.3 ms for a million parameters, where decay and Adam
take 1.4 (benchmarks/cpu_operators.py).
"""

from __future__ import annotations

from typing import Any

from mindspore import nn, ops


class CpuAdamWeightDecay(nn.Cell):
    """p = p - rate (m / (sqrt(v) + eps) + decay p) in place, as `ops.AdamWeightDecay`, of which it is a drop-in."""

    def __init__(self) -> None:
        super().__init__()
        self.adam = ops.Adam()

    def construct(
        self,
        parameter: Any,
        m: Any,
        v: Any,
        rate: Any,
        beta1: Any,
        beta2: Any,
        epsilon: float,
        decay: Any,
        gradient: Any,
    ) -> Any:
        decayed = ops.assign(parameter, parameter * (1.0 - rate * decay))
        none = ops.depend(rate * 0.0, decayed)  # both powers of beta are 0: `rate` is corrected already
        return self.adam(parameter, m, v, none, none, rate, beta1, beta2, epsilon, gradient)[0]
