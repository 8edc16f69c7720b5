"""What MindSpore's CPU operators cost, and what spark13b writes instead of them.

Ours are in src/spark13b/model/row_ops.py and src/spark13b/train/cpu_adam.py.

    python benchmarks/cpu_operators.py [--rows 4096] [--width 256] [--rounds 9]

Both sides of a row are compiled before, then timed in turns; the table has medians in milliseconds for one operator
over rows x width float32 numbers, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from spark13b.model.device import device
from spark13b.model.layers import gelu
from spark13b.model.row_ops import CpuAffine, CpuLayerNorm
from spark13b.train.cpu_adam import CpuAdamWeightDecay

REPEATS = 8  # of the operator inside one graph, so that the call itself does not count


class Chain(nn.Cell):
    """`operator` REPEATS times, each on the result of the one before; one number comes back."""

    def __init__(self, operator: nn.Cell) -> None:
        super().__init__()
        self.operator = operator

    def construct(self, x: Any, a: Any, b: Any) -> Any:
        for _ in range(REPEATS):
            x = self.operator(x, a, b)
        return x[:1, :1]


class Gradient(nn.Cell):
    """The gradients of all inputs of `operator`, summed into its first."""

    def __init__(self, operator: nn.Cell) -> None:
        super().__init__()
        self.gradient = ops.GradOperation(get_all=True)(operator)

    def construct(self, x: Any, a: Any, b: Any) -> Any:
        dx, da, db = self.gradient(x, a, b)
        return dx + (da.sum() + db.sum()) * 1e-6


class TheirNorm(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=1e-5)

    def construct(self, x: Any, a: Any, b: Any) -> Any:
        return self.norm(x, a, b)[0]


class TheirAffine(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.matmul, self.bias_add = ops.MatMul(transpose_b=True), ops.BiasAdd()

    def construct(self, x: Any, a: Any, b: Any) -> Any:
        return self.bias_add(self.matmul(x, a), b)


class TheirGelu(nn.Cell):
    def construct(self, x: Any, a: Any, b: Any) -> Any:
        return ops.GeLU()(x)


class OurGelu(nn.Cell):
    def construct(self, x: Any, a: Any, b: Any) -> Any:
        return gelu(x)


class Update(nn.Cell):
    """AdamW of parameters of x's shape by the gradient x, which comes back."""

    def __init__(self, update: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.parameter, self.m, self.v = (Parameter(ops.ones(shape, mindspore.float32), name=name) for name in "pmv")
        self.update = update

    def construct(self, x: Any, a: Any, b: Any) -> Any:
        rate = a[0] * 0.0 + 1e-4
        return ops.depend(x, self.update(self.parameter, self.m, self.v, rate, 0.9, 0.95, 1e-8, rate, x))


class Add(nn.Cell):
    def construct(self, x: Any, a: Any, b: Any) -> Any:
        return x + a


def milliseconds(cell: nn.Cell, inputs: tuple[Tensor, ...]) -> float:
    start = time.perf_counter()
    cell(*inputs).asnumpy()
    return (time.perf_counter() - start) / REPEATS * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    device()
    random = np.random.default_rng(0)

    def tensor(*shape: int) -> Tensor:
        return Tensor(random.standard_normal(shape, np.float32), mindspore.float32)

    rows, width = arguments.rows, arguments.width
    x, row, matrix, same = tensor(rows, width), tensor(width), tensor(width, width), tensor(rows, width)
    cases: list[tuple[str, nn.Cell, nn.Cell, tuple[Tensor, ...], tuple[Tensor, ...]]] = [
        ("layer norm", TheirNorm(), CpuLayerNorm(1e-5), (x, row, row), (x, row, row)),
        ("layer norm, gradient", Gradient(TheirNorm()), Gradient(CpuLayerNorm(1e-5)), (x, row, row), (x, row, row)),
        ("x W^T + b, gradient", Gradient(TheirAffine()), Gradient(CpuAffine()), (x, matrix, row), (x, matrix, row)),
        ("gelu", TheirGelu(), OurGelu(), (x, row, row), (x, row, row)),
        ("gelu, gradient", Gradient(TheirGelu()), Gradient(OurGelu()), (x, row, row), (x, row, row)),
        (
            "AdamW",
            Update(ops.AdamWeightDecay(), (rows, width)),
            Update(CpuAdamWeightDecay(), (rows, width)),
            (x, row, row),
            (x, row, row),
        ),
        ("add a row / add equal shapes", Add(), Add(), (x, row, row), (x, same, row)),
    ]
    print(f"{'operator':30} {'MindSpore ms':>13} {'spark13b ms':>12} {'ratio':>6}")
    for name, theirs, ours, their_inputs, our_inputs in cases:
        their_chain, our_chain = Chain(theirs), Chain(ours)
        milliseconds(their_chain, their_inputs), milliseconds(our_chain, our_inputs)
        their_times, our_times = [], []
        for _ in range(arguments.rounds):
            their_times.append(milliseconds(their_chain, their_inputs))
            our_times.append(milliseconds(our_chain, our_inputs))
        a, b = statistics.median(their_times), statistics.median(our_times)
        print(f"{name:30} {a:13.2f} {b:12.2f} {a / b:6.1f}", flush=True)


if __name__ == "__main__":
    main()
