"""The native attention beside a NumPy computation and finite differences, for odd sizes."""

from __future__ import annotations

from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from spark13b.model.attention.native import Tiles
from spark13b.model.device import device
from spark13b.native import library as library_module

SHAPES = [(1, 1, 1, 32, 1), (2, 3, 7, 36, 3), (1, 2, 63, 64, 100), (2, 1, 65, 128, 64), (1, 2, 130, 34, 1)]


class _Gradients(nn.Cell):
    """q, k, v, dout -> out, and dq, dk, dv"""

    def __init__(self, tiles: Tiles) -> None:
        super().__init__()
        self.tiles = tiles
        self.values = _Values(tiles)
        self.differentiate = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, q: Any, k: Any, v: Any, dout: Any) -> tuple[Any, Any]:
        return self.values(q, k, v), self.differentiate(self.values)(q, k, v, dout)


class _Values(nn.Cell):
    def __init__(self, tiles: Tiles) -> None:
        super().__init__()
        self.tiles = tiles

    def construct(self, q: Any, k: Any, v: Any) -> Any:
        out, _ = self.tiles(q, k, v)
        return out


def expected(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    """In float64, all scores at once."""
    distance = np.arange(q.shape[2])[:, None] - np.arange(k.shape[2])[None]
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3])
    scores[..., (distance < 0) | (distance >= window)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("OMP_NUM_THREADS", str(request.param))
    return request.param


_FIRST: dict[Any, list[np.ndarray]] = {}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_formula_and_the_same_bits_for_1_and_2_threads(
    native_library: Any, threads: int, shape: tuple[int, int, int, int, int]
) -> None:
    device()
    assert library_module.thread_count() == threads
    *sizes, window = shape
    random = np.random.default_rng(sum(shape))
    q, k, v, dout = (random.standard_normal(sizes) for _ in range(4))
    tensors = [Tensor(array, mindspore.float32) for array in (q, k, v, dout)]
    out, gradients = _Gradients(Tiles(window, native_library))(*tensors)
    found = [one.asnumpy() for one in (out, *gradients)]
    np.testing.assert_allclose(found[0], expected(q, k, v, window), atol=2e-5)
    # the gradient along a random direction, by finite differences in float64
    for index, gradient in enumerate(found[1:]):
        step = random.standard_normal(sizes)
        moved = []
        for sign in (1, -1):
            arrays = [q, k, v]
            arrays[index] = arrays[index] + sign * 1e-5 * step
            moved.append((expected(*arrays, window) * dout).sum())
        slope = (moved[0] - moved[1]) / 2e-5
        assert (gradient * step).sum() == pytest.approx(slope, rel=1e-4, abs=1e-4 * np.sqrt(q.size))
    before = _FIRST.setdefault(shape, found)
    for one, other in zip(found, before, strict=True):
        np.testing.assert_array_equal(one, other)
