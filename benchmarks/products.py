"""The matrix products of a training step in float32: the native library's, MindSpore's (oneDNN) and torch's (MKL).

    python benchmarks/products.py [--sizes 50m 120m] [--rounds 15]

All three in one process, by turns, on 2 threads. Of each product of a step, for N tokens, there are three: forward
y = x W^T, the inputs' gradient dx = dy W and the weights' dW = dy^T x, with W of attention's projections (C, C), of
gate and up (F, C), of down (C, F), and, for at most 64 MB of logits at once, the embedding (V, C). Medians of GFLOP/s.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor
from sides import SIZES, THREADS, Size

from spark13b.model.device import device
from spark13b.native.library import Library, find_library
from spark13b.native.products import multiply

LOGITS = 16 * 1024 * 1024
KINDS = ("forward", "gradient of the inputs", "gradient of the weights")

Product = Callable[[], object]


def operands(kind: str, rows: int, outputs: int, inputs: int) -> tuple[np.ndarray, bool, np.ndarray, bool]:
    """Two matrices as they lie, and of each whether it is transposed before it is multiplied."""
    rng = np.random.default_rng(0)
    x, dy, w = (
        rng.standard_normal(shape, np.float32) for shape in ((rows, inputs), (rows, outputs), (outputs, inputs))
    )
    return {KINDS[0]: (x, False, w, True), KINDS[1]: (dy, False, w, False), KINDS[2]: (dy, True, x, False)}[kind]


def native_product(library: Library, a: np.ndarray, turn_a: bool, b: np.ndarray, turn_b: bool) -> Product:
    left, right = a.T if turn_a else a, b.T if turn_b else b
    out = np.empty((left.shape[0], right.shape[1]), np.float32)
    return lambda: multiply(library, left, right, out, threads=THREADS)


def mindspore_product(a: np.ndarray, turn_a: bool, b: np.ndarray, turn_b: bool) -> Product:
    operator, left, right = mindspore.ops.MatMul(turn_a, turn_b), Tensor(a), Tensor(b)
    return lambda: operator(left, right).asnumpy()[0, 0]


def torch_product(a: np.ndarray, turn_a: bool, b: np.ndarray, turn_b: bool) -> Product:
    import torch

    torch.set_num_threads(THREADS)
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    left, right = left.T if turn_a else left, right.T if turn_b else right
    return lambda: torch.mm(left, right)


def seconds(product: Product, calls: int) -> float:
    time.sleep(0.02)  # threads of the side before, which wait in loops for a while, sleep now
    product()
    start = time.perf_counter()
    for _ in range(calls):
        product()
    return (time.perf_counter() - start) / calls


def compare(size: Size, kind: str, library: Library, rounds: int) -> list[float]:
    """GFLOP/s of each of the three over all products of that kind in a step."""
    tokens, hidden, ffn = size.batch * size.tokens, size.hidden, size.ffn
    logits = min(tokens, LOGITS // size.vocabulary)
    shapes = [(tokens, hidden, hidden, 4), (tokens, ffn, hidden, 2), (tokens, hidden, ffn, 1)]
    counts = [(*shape, number * size.layers) for *shape, number in shapes]
    counts.append((logits, size.vocabulary, hidden, max(1, tokens // logits)))
    flops, taken = 0.0, [0.0, 0.0, 0.0]
    for rows, outputs, inputs, count in counts:
        matrices = operands(kind, rows, outputs, inputs)
        sides = [native_product(library, *matrices), mindspore_product(*matrices), torch_product(*matrices)]
        own = 2.0 * rows * outputs * inputs
        calls = max(1, round(1e9 / own))
        rates: list[list[float]] = [[], [], []]
        for _ in range(rounds + 1):
            for rate, side in zip(rates, sides, strict=True):
                rate.append(seconds(side, calls))
        flops += own * count
        for i, rate in enumerate(rates):
            taken[i] += count * statistics.median(rate[1:])
    return [flops / one / 1e9 for one in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["50m", "120m"])
    parser.add_argument("--rounds", type=int, default=15)
    arguments: Any = parser.parse_args()
    device()
    library = find_library().library
    if library is None:
        parser.error("there is no native library: spark13b native build")
    print("| size | products | native | MindSpore | torch | of MindSpore's | of torch's |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.sizes:
        for kind in KINDS:
            ours, theirs, torchs = compare(SIZES[name], kind, library, arguments.rounds)
            rates = f"{ours:.0f} | {theirs:.0f} | {torchs:.0f}"
            print(f"| {name} | {kind} | {rates} | {ours / theirs:.2f} | {ours / torchs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
