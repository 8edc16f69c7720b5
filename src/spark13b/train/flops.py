"""Floating point operations: what a token of training needs, and what a device can do in a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache

import numpy as np

from spark13b.config.preset import Preset
from spark13b.model.names import adapter_shapes, expected_shapes

_MEASURE_SECONDS = 0.3
_SIDE = 1024  # of the matrices that are multiplied


def flops_per_token(preset: Preset, tokens: int) -> float:
    """Floating point operations that training spends on one token of a row of `tokens`.

    6 P + 12 L C K. P: numbers in the matrices, the embedding counted once, as the output projection (2 P forward, 4 P
    backward; under LoRA the matrices need no gradient of their own, which saves 2 P). The products of queries with keys
    and of weights with values cost 4 C K a layer forward and twice that backward; K is the mean number of visible keys,
    sum over t = 1..T of min(t, window) / T. What recomputing costs on top is not counted: these are the model's
    operations, not the machine's.
    """
    model = preset.model
    matrices = sum(math.prod(shape) for shape in expected_shapes(model).values() if len(shape) == 2)
    window = min(model.sparse_local_size, tokens)
    keys = (window * (window + 1) / 2 + (tokens - window) * window) / tokens
    products = 6.0 * matrices
    if preset.task == "lora":
        products = 4.0 * matrices + 6.0 * sum(map(math.prod, adapter_shapes(model, preset.lora).values()))
    return products + 12.0 * model.num_layers * model.hidden_size * keys


def peak_flops(preset: Preset) -> float | None:
    """What all devices of the run can do in a second: machine.peak_tflops, on a CPU measured; None when unknown."""
    machine = preset.machine
    if machine.peak_tflops is not None:
        return machine.peak_tflops * 1e12 * preset.parallel.devices
    if machine.device == "cpu":
        return measured_peak(preset.model.compute_type) * preset.parallel.devices
    return None


@cache
def measured_peak(type_name: str) -> float:
    """Operations a second in products of square matrices, measured once a process for 0.3 s; the best of them."""
    product = _bfloat16_product() if type_name == "bfloat16" else _mindspore_product(type_name)
    best, began = math.inf, time.perf_counter()
    while time.perf_counter() - began < _MEASURE_SECONDS or best == math.inf:
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 2.0 * _SIDE**3 / best


def _mindspore_product(type_name: str) -> Callable[[], object]:
    from mindspore import Tensor, ops

    from spark13b.model.device import device, dtype

    device()
    matrix = Tensor(np.random.default_rng(0).standard_normal((_SIDE, _SIDE)).astype(np.float32), dtype(type_name))
    return lambda: ops.matmul(matrix, matrix).asnumpy()


def _bfloat16_product() -> Callable[[], object]:
    """The native library's, for MindSpore has none on a CPU."""
    from spark13b.native.library import find_library, thread_count
    from spark13b.native.matrix import BFLOAT16
    from spark13b.native.products import multiply

    library = find_library().library
    assert library is not None, "a model of that type was made"
    matrix = np.random.default_rng(0).standard_normal((_SIDE, _SIDE)).astype(BFLOAT16)
    result = np.empty((_SIDE, _SIDE), np.float32)
    return lambda: multiply(library, matrix, matrix, result, threads=thread_count())
