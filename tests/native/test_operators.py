"""The operators for MindSpore, called without it: attention, a batch's loss and gradients, the update; beside NumPy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest

from model.numpy_model import NumpyModel, random_weights
from spark13b.config.model import SparkConfig
from spark13b.model.names import expected_shapes
from spark13b.model.rope_table import rope_table
from spark13b.native.library import Library
from spark13b.native.matrix import BFLOAT16 as HALF
from spark13b.native.matrix import Matrix
from spark13b.native.packing import dequantize, quantize
from spark13b.native.weights import Weights


def call(library: Library, name: str, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> int:
    """As MindSpore calls a function of `ops.Custom` with func_type "aot"."""
    arrays = [*inputs, *outputs]
    _ = library.onednn  # is opened by looking
    function = getattr(ctypes.CDLL(str(library.path)), name)
    shapes = [(ctypes.c_int64 * max(array.ndim, 1))(*array.shape) for array in arrays]
    status: int = function(
        len(arrays),
        (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays)),
        (ctypes.c_int * len(arrays))(*(array.ndim for array in arrays)),
        (ctypes.POINTER(ctypes.c_int64) * len(arrays))(
            *(ctypes.cast(one, ctypes.POINTER(ctypes.c_int64)) for one in shapes)
        ),
        None,
        None,
        None,
    )
    return status


def bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    """(B, H, T, D), float64."""
    return attention_weights(q, k, window) @ v


def attention_weights(q: np.ndarray, k: np.ndarray, window: int) -> np.ndarray:
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    distance = np.arange(q.shape[2])[:, None] - np.arange(q.shape[2])
    scores = np.where((distance >= 0) & (distance < window), scores, -np.inf)
    weights: np.ndarray = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention_gradient(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int, change: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Of sum(attention * change), for q, k and v."""
    weights = attention_weights(q, k, window)
    slopes = change @ v.swapaxes(-1, -2)
    slopes = weights * (slopes - (weights * slopes).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return slopes @ k, slopes.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ change


FLOAT32, BFLOAT16 = 0, 1


def attend(
    library: Library, level: int, threads: int, kind: int, window: int, q: np.ndarray, k: np.ndarray, v: np.ndarray,
    change: np.ndarray,
) -> list[np.ndarray]:  # fmt: skip
    """(B, H, T, D) -> the attended values, and the gradients of q, k and v."""
    out, sums = np.empty_like(q), np.empty(q.shape[:3], np.float32)
    given, gradients = numbers(threads, level, window, kind), [np.empty_like(q) for _ in range(3)]
    assert call(library, "spark_attention", [given, q, k, v], [out, sums]) == 0
    assert call(library, "spark_attention_gradient", [given, q, k, v, out, sums, change], gradients) == 0
    return [out, *gradients]


def four_random(tokens: int, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(tokens)
    return [rng.standard_normal((1 if tokens > 800 else 2, 3, tokens, size), np.float32) for _ in range(4)]


# from 800 tokens on tiles compute float32, too
@pytest.mark.parametrize(
    ("tokens", "size", "window"),
    [(1, 2, 1), (7, 36, 3), (63, 64, 100), (65, 128, 1), (130, 16, 50), (801, 24, 900), (1100, 40, 600)],
)
def test_attention_and_its_gradient_are_numpys_on_every_set_of_instructions(
    tokens: int, size: int, window: int, native_library: Library
) -> None:
    q, k, v, change = four_random(tokens, size)
    wide = [array.astype(np.float64) for array in (q, k, v)]
    expected = [attention(*wide, window), *attention_gradient(*wide, window, change)]
    for level in range(native_library.best + 1):
        found = attend(native_library, level, 2, FLOAT32, window, q, k, v, change)
        for one, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, wanted, atol=2e-5)


def test_numpys_gradient_of_attention_is_its_slope() -> None:
    q, k, v, change = (array.astype(np.float64) for array in four_random(9, 6))
    rng = np.random.default_rng(0)
    for which, gradient in enumerate(attention_gradient(q, k, v, 4, change)):
        step = 1e-6 * rng.standard_normal(q.shape)
        ends = [
            (attention(*(one + sign * step * (at == which) for at, one in enumerate((q, k, v))), 4) * change).sum()
            for sign in (1, -1)
        ]
        np.testing.assert_allclose((gradient * step).sum(), (ends[0] - ends[1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("size", [32, 48, 64, 128])
@pytest.mark.parametrize("tokens", [1, 7, 63, 65])
def test_attention_in_bfloat16_is_off_by_its_rounding(size: int, tokens: int, native_library: Library) -> None:
    """A side of a product is off by 2^-9 of itself, and errors of many add up as their squares do.

    Measured: 0.004 of the largest number of the values and of v's gradient, 0.008 of those of q and k. The last are
    differences of numbers of about 3, of which nothing is left where a query sees itself alone.
    """
    q, k, v, change = four_random(tokens, size)
    wide = [array.astype(np.float64) for array in (q, k, v)]
    for window in (1, 20, 1000):
        expected = [attention(*wide, window), *attention_gradient(*wide, window, change)]
        for level in range(native_library.best + 1):
            found = attend(native_library, level, 2, BFLOAT16, window, q, k, v, change)
            for one, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, wanted, rtol=0, atol=0.012 * max(3.0, abs(wanted).max()))
            if window == 1:
                assert max(abs(found[1]).max(), abs(found[2]).max()) < 0.002


@pytest.mark.parametrize(("kind", "tokens"), [(FLOAT32, 65), (FLOAT32, 1000), (BFLOAT16, 65), (BFLOAT16, 200)])
def test_attention_has_the_same_bits_for_any_number_of_threads(kind: int, tokens: int, native_library: Library) -> None:
    arrays = four_random(tokens, 48)
    for window in (50, 2000):
        one, two = (attend(native_library, native_library.best, threads, kind, window, *arrays) for threads in (1, 2))
        for left, right in zip(one, two, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(("kind", "tokens"), [(FLOAT32, 130), (FLOAT32, 1026), (BFLOAT16, 130)])
def test_what_stands_behind_a_block_of_queries_cannot_reach_it(kind: int, tokens: int, native_library: Library) -> None:
    q, k, v, _ = four_random(tokens, 40)
    given, block = numbers(2, native_library.best, 2000, kind), tokens - 2
    expected, found, sums = np.empty_like(q), np.empty_like(q), np.empty(q.shape[:3], np.float32)
    assert call(native_library, "spark_attention", [given, q, k, v], [expected, sums]) == 0
    k[:, :, block:], v[:, :, block:] = np.nan, np.inf
    assert call(native_library, "spark_attention", [given, q, k, v], [found, sums]) == 0
    np.testing.assert_array_equal(found[:, :, :block], expected[:, :, :block])
    assert not np.isfinite(found[:, :, block:]).any()


def test_large_scores_neither_overflow_nor_vanish(native_library: Library) -> None:
    """The largest score grows from step to step, and weights go from 1 to nothing."""
    q, k, v, change = (array[:1, :1].copy() for array in four_random(820, 32))
    q, k = 30 * q, k * np.linspace(0.1, 30, 820, dtype=np.float32)[:, None]
    expected = attention(*(array.astype(np.float64) for array in (q, k, v)), 500)
    for level in range(native_library.best + 1):
        found = attend(native_library, level, 2, FLOAT32, 500, q, k, v, change)
        np.testing.assert_allclose(found[0], expected, atol=5e-3)
    rounded = attend(native_library, native_library.best, 2, BFLOAT16, 500, q, k, v, change)
    assert all(np.isfinite(one).all() for one in rounded)


class Batch:
    """A small model and two texts of it."""

    types: tuple[int, int] = (FLOAT32, FLOAT32)  # of linear layers' weights and biases, of the embedding
    widths: tuple[int, int] = (24, 40)  # hidden_size and ffn_hidden_size

    def __init__(self, window: int = 6) -> None:
        self.config = SparkConfig(
            num_layers=2,
            hidden_size=self.widths[0],
            num_heads=3,
            ffn_hidden_size=self.widths[1],
            vocab_size=37,
            seq_length=20,
            sparse_local_size=window,
        )
        weights = random_weights(self.config, seed=1)
        self.weights = {
            name: np.ascontiguousarray(weights[name] * (1 if weights[name].ndim == 1 else 0.3), np.float32)
            for name in expected_shapes(self.config)
        }
        rng = np.random.default_rng(2)
        self.ids, self.targets = (rng.integers(0, 37, (2, 13)).astype(np.int32) for _ in range(2))
        self.mask = (rng.random((2, 13)) < 0.7).astype(np.float32)
        self.tables = [np.ascontiguousarray(table, np.float32) for table in rope_table(self.config)]

    def inputs(self, level: int, threads: int = 2, kind: int = 0, recompute: int = 0) -> list[np.ndarray]:
        epsilon = bits(self.config.layernorm_epsilon)
        given = numbers(threads, level, 3, self.config.sparse_local_size, kind, recompute, epsilon, 2, *self.types)
        factor = np.array([0.5], np.float32)
        return [given, self.ids, self.targets, self.mask, factor, *self.tables, *self.weights.values()]

    def loss(self, weights: dict[str, np.ndarray]) -> float:
        logits = NumpyModel(self.config, weights).logits(self.ids).astype(np.float64)
        most = logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits - most, self.targets[..., None], -1)[..., 0]
        return float(0.5 * (self.mask * (np.log(np.exp(logits - most).sum(-1)) - chosen)).sum())


def test_a_batchs_loss_and_gradients_are_numpys(native_library: Library) -> None:
    batch = Batch()
    expected = batch.loss(batch.weights)
    rng = np.random.default_rng(3)
    directions = {name: rng.standard_normal(array.shape) for name, array in batch.weights.items()}
    slopes = {}
    for name, step in directions.items():
        wide = {other: array.astype(np.float64) for other, array in batch.weights.items()}
        moved = [batch.loss(wide | {name: wide[name] + sign * 1e-5 * step}) for sign in (1, -1)]
        slopes[name] = (moved[0] - moved[1]) / 2e-5
    for level in range(native_library.best + 1):
        for recompute in (0, 1):
            sums, gradients = np.empty(2, np.float32), [np.empty_like(one) for one in batch.weights.values()]
            inputs = batch.inputs(level, recompute=recompute)
            assert call(native_library, "spark_loss_and_gradients", inputs, [sums, *gradients]) == 0
            np.testing.assert_allclose(sums[0], expected, rtol=1e-5)
            for (name, step), found in zip(directions.items(), gradients, strict=True):
                np.testing.assert_allclose((found * step).sum(), slopes[name], rtol=2e-3, atol=2e-3, err_msg=name)
    alone = np.empty(2, np.float32)
    assert call(native_library, "spark_loss", batch.inputs(native_library.best), [alone]) == 0
    np.testing.assert_array_equal(alone, sums)


def test_gradients_have_the_same_bits_for_any_number_of_threads_and_bfloat16_is_near(native_library: Library) -> None:
    if native_library.multiplier("bfloat16") is None:
        pytest.skip("there is neither AMX nor a oneDNN")
    batch, found = Batch(window=1), []
    for threads, kind in ((1, 0), (2, 0), (1, 1), (2, 1)):
        outputs = [np.empty(2, np.float32), *(np.empty_like(one) for one in batch.weights.values())]
        inputs = batch.inputs(native_library.best, threads, kind)
        assert call(native_library, "spark_loss_and_gradients", inputs, outputs) == 0
        found.append(outputs)
    for one, two in (found[:2], found[2:]):
        for left, right in zip(one, two, strict=True):
            np.testing.assert_array_equal(left, right)
    np.testing.assert_allclose(found[2][0][0], found[0][0][0], rtol=0.01)


class AdaptedBatch(Batch):
    """The same with adapters beside some linear layers, `masks` of bits for each layer."""

    def __init__(self, rank: int, masks: tuple[int, int]) -> None:
        super().__init__()
        self.rank, self.scale, self.masks = rank, 0.75, masks
        rng, linears = np.random.default_rng(rank), [name for name in self.weights if name.endswith(".weight")]
        self.adapters: dict[str, np.ndarray] = {}
        for number, name in enumerate(linears):
            if masks[number // 7] >> number % 7 & 1:
                outputs, inputs = self.weights[name].shape
                self.adapters[f"{name} a"] = (0.3 * rng.standard_normal((rank, inputs))).astype(np.float32)
                self.adapters[f"{name} b"] = (0.3 * rng.standard_normal((outputs, rank))).astype(np.float32)

    def inputs(self, level: int, threads: int = 2, kind: int = 0, recompute: int = 0) -> list[np.ndarray]:
        given, *tensors = super().inputs(level, threads, kind, recompute)
        return [numbers(*given, self.rank, bits(self.scale), *self.masks), *tensors, *self.adapters.values()]

    def adapted_loss(self, adapters: dict[str, np.ndarray]) -> float:
        """Of the weights with the adapters added to them."""
        weights = {name: array.astype(np.float64) for name, array in self.weights.items()}
        for name in weights:
            if f"{name} a" in adapters:
                weights[name] = weights[name] + self.scale * (adapters[f"{name} b"] @ adapters[f"{name} a"])
        return self.loss(weights)

    def run(self, library: Library, name: str, *settings: int) -> list[np.ndarray]:
        """-> loss and hits, and the adapters' gradients where the operator makes them"""
        outputs = [np.full(2, np.nan, np.float32)]
        if name == "spark_loss_and_gradients":
            outputs += [np.full_like(one, np.nan) for one in self.adapters.values()]
        assert call(library, name, self.inputs(*settings), outputs) == 0
        return outputs


ALL = 0b1111111


@pytest.mark.parametrize(
    ("rank", "masks"),
    [(3, (ALL, ALL)), (5, (0b0000101, 0b0000101)), (1, (0b1000000, 0b0111000)), (17, (0, 0b1010010)), (2, (0b10, 0))],
    ids=str,
)
def test_gradients_of_adapters_are_numpys_slopes(rank: int, masks: tuple[int, int], native_library: Library) -> None:
    batch = AdaptedBatch(rank, masks)
    rng, slopes = np.random.default_rng(3), {}
    wide = {name: array.astype(np.float64) for name, array in batch.adapters.items()}
    directions = {name: rng.standard_normal(array.shape) for name, array in wide.items()}
    for name, step in directions.items():
        ends = [batch.adapted_loss(wide | {name: wide[name] + sign * 1e-5 * step}) for sign in (1, -1)]
        slopes[name] = (ends[0] - ends[1]) / 2e-5
    for level in range(native_library.best + 1):
        for recompute in (0, 1):
            sums, *gradients = batch.run(native_library, "spark_loss_and_gradients", level, 2, FLOAT32, recompute)
            np.testing.assert_allclose(sums[0], batch.adapted_loss(wide), rtol=1e-5)
            for (name, step), found in zip(directions.items(), gradients, strict=True):
                np.testing.assert_allclose((found * step).sum(), slopes[name], rtol=2e-3, atol=2e-3, err_msg=name)
    np.testing.assert_array_equal(batch.run(native_library, "spark_loss", native_library.best)[0], sums)


@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16])
def test_gradients_of_adapters_have_the_same_bits_for_any_number_of_threads_and_recomputed(
    kind: int, native_library: Library
) -> None:
    batch = AdaptedBatch(3, (ALL, 0b1010101))
    found = [
        batch.run(native_library, "spark_loss_and_gradients", native_library.best, threads, kind, recompute)
        for threads, recompute in ((1, 0), (2, 0), (2, 1))
    ]
    for one in found[1:]:
        for left, right in zip(found[0], one, strict=True):
            np.testing.assert_array_equal(left, right)
    np.testing.assert_allclose(
        found[0][0][0], batch.adapted_loss(batch.adapters), rtol=1e-5 if kind == FLOAT32 else 0.01
    )


@pytest.mark.parametrize("types", [(BFLOAT16, BFLOAT16), (BFLOAT16, FLOAT32), (FLOAT32, BFLOAT16)])
def test_frozen_weights_may_be_bfloat16(types: tuple[int, int], native_library: Library) -> None:
    """Products take them as they are: the numbers are those of weights that were rounded before."""
    batch = AdaptedBatch(3, (ALL, ALL))
    half = {
        name: array.astype(HALF)
        for name, array in batch.weights.items()
        if "norm" not in name and types["embedding" in name] == BFLOAT16
    }
    batch.weights |= {name: array.astype(np.float32) for name, array in half.items()}
    kinds, settings = (FLOAT32, BFLOAT16), ("spark_loss_and_gradients", native_library.best, 2)
    found = [batch.run(native_library, *settings, kind) for kind in kinds]
    batch.types = types
    batch.weights |= half
    for kind, expected in zip(kinds, found, strict=True):
        again = batch.run(native_library, *settings, kind)
        for one, other in zip(again, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    without, outputs = Batch(), [np.empty(2, np.float32), *(np.empty_like(one) for one in batch.weights.values())]
    without.types = types
    assert call(native_library, "spark_loss_and_gradients", without.inputs(0), outputs) == 1  # they cannot be trained


class RoundedBatch(AdaptedBatch):
    """With a base of int4, int8 and float32 that is no tensors; `weights` are what it stands for."""

    widths = (192, 320)  # a block of 128 columns that is unpacked at once, and what is left of a row; heads of 64

    def __init__(self, rank: int, masks: tuple[int, int]) -> None:
        super().__init__(rank, masks)
        self.base: dict[str, np.ndarray | Matrix] = dict(self.weights)
        for name, array in self.weights.items():
            if array.ndim == 2 and "1.attention.k_proj" not in name:
                self.base[name] = rounded = quantize(array, 8 if "embedding" in name or "fc1" in name else 4, 32)
                self.weights[name] = dequantize(rounded)
        self.where = Weights([*self.base.values()], *self.tables, 3, self.config.layernorm_epsilon)

    def elsewhere(self, library: Library, *settings: int) -> list[np.ndarray]:
        """As `run`, of loss and gradients."""
        given, *tensors = self.inputs(*settings)
        given[8:10] = self.where.addresses()
        outputs = [np.full(2, np.nan, np.float32), *(np.full_like(one, np.nan) for one in self.adapters.values())]
        few = [*tensors[:6], *self.adapters.values()]
        assert call(library, "spark_loss_and_gradients_elsewhere", [given, *few], outputs) == 0
        alone = [np.empty(2, np.float32)]
        assert call(library, "spark_loss_elsewhere", [given, *few], alone) == 0
        np.testing.assert_array_equal(alone[0], outputs[0])
        return outputs


@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16])
def test_beside_weights_of_whole_numbers_the_bits_are_those_beside_what_they_stand_for(
    kind: int, native_library: Library
) -> None:
    batch = RoundedBatch(3, (0b1000001, ALL))
    for level in range(native_library.best + 1) if kind == FLOAT32 else [native_library.best]:
        for threads, recompute in ((1, 0), (2, 1)):
            expected = batch.run(native_library, "spark_loss_and_gradients", level, threads, kind, recompute)
            for one, other in zip(
                batch.elsewhere(native_library, level, threads, kind, recompute), expected, strict=True
            ):
                np.testing.assert_array_equal(one, other)


def test_weights_of_whole_numbers_are_not_trained(native_library: Library) -> None:
    batch = RoundedBatch(3, (ALL, ALL))
    given, *tensors = Batch.inputs(batch, 0)
    given[8:10] = batch.where.addresses()
    outputs = [np.empty(2, np.float32)]
    assert call(native_library, "spark_loss_elsewhere", [given, *tensors[:6]], outputs) == 0
    assert call(native_library, "spark_loss_and_gradients_elsewhere", [given, *tensors[:6]], outputs) == 1
    assert call(native_library, "spark_loss_elsewhere", [given, *tensors], outputs) == 1  # with tensors of weights


def test_adapters_that_do_not_fit_their_numbers_are_refused(native_library: Library) -> None:
    batch, sums = AdaptedBatch(3, (ALL, ALL)), [np.empty(2, np.float32)]
    assert native_library.onednn is not None
    given, *tensors = batch.inputs(0)
    assert call(native_library, "spark_loss", [given, *tensors[:-1]], sums) == 1
    assert call(native_library, "spark_loss", [given[:-1], *tensors], sums) == 1
    given[10] = 0  # their rank
    assert call(native_library, "spark_loss", [given, *tensors], sums) == 1


def test_an_update_is_adamws_with_the_gradients_clipped(native_library: Library) -> None:
    rng = np.random.default_rng(4)
    shapes = [(5, 7), (40_000,), (1,)]
    weights, m, gradients = ([rng.standard_normal(shape).astype(np.float32) for shape in shapes] for _ in range(3))
    v = [rng.random(shape).astype(np.float32) for shape in shapes]
    decays, rate, decay, scale, clip = (1, 0, 1), 0.01, 0.1, 4.0, 1.0
    norm = np.sqrt(sum((one.astype(np.float64) ** 2).sum() for one in gradients)) / scale
    factor = clip / (max(norm, clip) + 1e-6) / scale
    expected = []
    for one, first, second, change, decays_it in zip(weights, m, v, gradients, decays, strict=True):
        change = change.astype(np.float64) * factor
        first, second = 0.9 * first + 0.1 * change, 0.95 * second + 0.05 * change**2
        expected.append(one * (1 - rate * decay * decays_it) - rate * first / (np.sqrt(second) + 1e-8))
    settings = numbers(2, native_library.best, *map(bits, (0.9, 0.95, 1e-8, clip)), 0, *decays)
    scalars = [np.array([value], np.float32) for value in (rate, decay, scale)]
    out = np.empty(1, np.float32)
    assert call(native_library, "spark_update", [settings, *scalars, *weights, *m, *v, *gradients], [out]) == 0
    np.testing.assert_allclose(out[0], norm, rtol=1e-6)
    for found, wanted in zip(weights, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_is_out_of_range_is_refused(native_library: Library) -> None:
    batch = Batch()
    batch.ids[0, 0] = 37
    assert call(native_library, "spark_loss", batch.inputs(0), [np.empty(2, np.float32)]) == 1


def test_what_is_no_number_stays_none_when_it_is_rounded(native_library: Library) -> None:
    """All bits of its fraction are set: rounded as numbers are, it would become -0."""
    if native_library.multiplier("bfloat16") is None:
        pytest.skip("there is neither AMX nor a oneDNN")
    for level in range(native_library.best + 1):
        batch, sums = Batch(), np.zeros(2, np.float32)
        name = next(name for name in batch.weights if name.endswith(".weight"))
        batch.weights[name].view(np.uint32)[0, 0] = 0x7FFFFFFF
        assert call(native_library, "spark_loss", batch.inputs(level, 1, BFLOAT16), [sums]) == 0
        assert np.isnan(sums[0]), level


def dropout_numbers(threshold: int, of_adapters: int) -> np.ndarray:
    """A key and 2 x 9 places of layers behind that of the embedding; what is kept is scaled by 1.25 and 1.5."""
    rng = np.random.default_rng(5)
    places = rng.integers(0, 2**31, 19)
    return numbers(123456789, 7, threshold, of_adapters, bits(1.25), bits(1.5), *places)


@pytest.mark.parametrize("adapted", [False, True])
def test_gradients_with_dropout_are_slopes_of_the_loss_with_the_same_masks(
    adapted: bool, native_library: Library
) -> None:
    """The loss in float32 has 6 or 7 digits: a long step, and slopes of the fourth order."""
    batch = AdaptedBatch(3, (ALL, 0b1010101)) if adapted else Batch()
    trained = batch.adapters if isinstance(batch, AdaptedBatch) else batch.weights
    rate = 2**31 // 5
    dropped = dropout_numbers(rate, rate if adapted else 0)
    rng = np.random.default_rng(6)
    directions = {name: rng.standard_normal(array.shape).astype(np.float32) for name, array in trained.items()}

    def run(level: int, threads: int, recompute: int = 0) -> list[np.ndarray]:
        outputs = [np.empty(2, np.float32), *(np.empty_like(one) for one in trained.values())]
        inputs = [*batch.inputs(level, threads, FLOAT32, recompute), dropped]
        assert call(native_library, "spark_loss_and_gradients", inputs, outputs) == 0
        return outputs

    sums, *gradients = run(native_library.best, 2)
    slope = sum(float((found * directions[name]).sum()) for name, found in zip(trained, gradients, strict=True))
    before, ends = {name: array.copy() for name, array in trained.items()}, {}
    for steps in (-2, -1, 1, 2):
        for name, array in trained.items():
            array[...] = before[name] + np.float32(steps * 4e-3) * directions[name]
        ends[steps] = float(run(native_library.best, 2)[0][0])
    for name, array in trained.items():
        array[...] = before[name]
    assert slope == pytest.approx((8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / (12 * 4e-3), rel=2e-3)
    for level in range(native_library.best + 1):
        for threads, recompute in ((1, 0), (2, 1)):
            found = run(level, threads, recompute)
            for one, other in zip(found, [sums, *gradients], strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * abs(other).max())
    outputs = [np.empty(2, np.float32), *gradients]
    wrong = [*batch.inputs(0), dropped[:-1]]
    assert call(native_library, "spark_loss_and_gradients", wrong, outputs) == 1
