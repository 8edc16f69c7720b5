"""Attention, forward and backward, by the native library beside MindSpore's operators block by block.

    python benchmarks/attention.py [--tokens 8192] [--window 2048] [--heads 4] [--rounds 5]

One text, heads of 64, float32, 2 threads, both sides by turns in one process; medians of the rounds.
Operations are counted for keys that are seen: 4 D a query and key forward, 10 D backward. The machine's rate is that of
MindSpore's product of 2048 x 2048, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "2"

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from spark13b.config.model import SparkConfig
from spark13b.model.attention.attend import make_backend
from spark13b.model.device import device

HEAD_SIZE, PRODUCT = 64, 2048


class Attention(nn.Cell):
    """q, k, v (1, H, T, D) -> the same shape"""

    def __init__(self, backend: str, config: SparkConfig) -> None:
        super().__init__()
        self.backend = make_backend(backend, config)

    def construct(self, q: Any, k: Any, v: Any, zero: Any) -> Any:
        return self.backend(q, k, v, self.backend.mask(zero, 1, q.shape[1], q.shape[2]))


class BothWays(nn.Cell):
    """-> the values, and the gradients of q, k and v"""

    def __init__(self, backend: str, config: SparkConfig) -> None:
        super().__init__()
        self.attention = Attention(backend, config)
        self.differentiate = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, q: Any, k: Any, v: Any, dout: Any, zero: Any) -> tuple[Any, Any]:
        out = self.attention(q, k, v, zero)
        return out, self.differentiate(self.attention)(q, k, v, zero, ops.depend(dout, out))


class Product(nn.Cell):
    def construct(self, a: Any, b: Any) -> Any:
        return ops.MatMul()(a, b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 8192), ("window", 2048), ("heads", 4), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    device()
    config = SparkConfig(
        num_layers=1,
        hidden_size=asked.heads * HEAD_SIZE,
        num_heads=asked.heads,
        ffn_hidden_size=2,
        vocab_size=2,
        seq_length=asked.tokens,
        sparse_local_size=asked.window,
    )
    random = np.random.default_rng(0)
    shape = (1, asked.heads, asked.tokens, HEAD_SIZE)
    inputs = [Tensor(random.standard_normal(shape), mindspore.float32) for _ in range(4)]
    zero, square = Tensor(np.int32(0)), Tensor(np.ones((PRODUCT, PRODUCT)), mindspore.float32)
    sides = {name: BothWays(name, config) for name in ("native", "blocked")}
    product = Product()
    found = {name: [one.asnumpy() for one in flat(side(*inputs, zero))] for name, side in sides.items()}
    apart = max(np.abs(one - other).max() for one, other in zip(*found.values(), strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in (*sides, "product")}
    for _ in range(asked.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            flat(side(*inputs, zero))[-1].asnumpy()
            seconds[name].append(time.perf_counter() - start)
        start = time.perf_counter()
        product(square, square).asnumpy()
        seconds["product"].append(time.perf_counter() - start)
    seen = sum(min(place + 1, asked.window) for place in range(asked.tokens)) * asked.heads
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rate, product_rate = 14 * HEAD_SIZE * seen / median["native"] / 1e9, 2 * PRODUCT**3 / median["product"] / 1e9
    print(f"{asked.heads} heads, {asked.tokens} tokens, window {asked.window}; results differ by {apart:.1e}")
    print(f"native {median['native']:.3f} s ({rate:.0f} GFLOP/s; a product: {product_rate:.0f})")
    print(f"blocked {median['blocked']:.3f} s, ratio {median['blocked'] / median['native']:.1f}")


def flat(result: tuple[Any, Any]) -> list[Any]:
    """out, dq, dk, dv"""
    return [result[0], *result[1][:3]]


if __name__ == "__main__":
    main()
