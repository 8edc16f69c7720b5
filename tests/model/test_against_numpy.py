"""Losses and gradients for windows, lengths and blocks that divide nothing, against the NumPy twin in float64.

MindSpore runs the operators of most cases one by one; test_golden.py compiles a whole model's loss and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from model.compiled import SmallBlocks, loss_and_gradients, make_model
from model.numpy_model import Array, NumpyModel, attention_weights, random_weights
from spark13b.config.model import SparkConfig
from spark13b.model.attention import choose, plain
from spark13b.model.attention.blocked import BlockedAttention


def small_config(window: int, **changes: Any) -> SparkConfig:
    shape: dict[str, Any] = {
        "num_layers": 1,
        "hidden_size": 24,
        "num_heads": 3,
        "ffn_hidden_size": 20,
        "vocab_size": 37,
        "seq_length": 23,
        "sparse_local_size": window,
    }
    return SparkConfig(**(shape | changes))


@pytest.mark.usefixtures("operator_by_operator")
@pytest.mark.parametrize(("window", "batch", "tokens"), [(1, 3, 13), (7, 1, 23), (16, 3, 21), (23, 1, 23)])
def test_loss_and_gradients_equal_numpy(window: int, batch: int, tokens: int) -> None:
    config = small_config(window)
    weights = random_weights(config, seed=window)
    rng = np.random.default_rng(tokens)
    # the pad id 0 is an ordinary token: half of the ids are
    ids = rng.integers(0, 37, (batch, tokens + 1)) * rng.integers(0, 2, (batch, tokens + 1))
    mask = rng.integers(0, 2, (batch, tokens)).astype(float)
    expected, slopes = NumpyModel(config, weights).gradients(ids, mask)
    loss, gradients = loss_and_gradients(make_model(config, weights))(ids, mask)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == slopes.keys()
    # k_proj.bias moves all scores of a row alike with window T and less near the start: its gradient is all but zero
    scale = max(np.abs(slope).max() for slope in slopes.values())
    for name, slope in slopes.items():
        assert np.abs(gradients[name] - slope).max() < 1e-5 * scale, name


class Weighted(nn.Cell):
    """sum(weight * attention(q, k, v)) and the attention itself."""

    def __init__(self, backend: BlockedAttention) -> None:
        super().__init__()
        self.backend = backend

    def construct(self, q: Any, k: Any, v: Any, weight: Any, zero: Any) -> tuple[Any, Any]:
        mask = self.backend.mask(zero, q.shape[0], q.shape[1], q.shape[2])
        out = self.backend(q, k, v, mask)
        return (out * weight).sum(), out


def compiled(backend: BlockedAttention) -> Callable[..., list[Array]]:
    """A function of q, k, v and weight -> attention, and the gradients of sum(weight * attention) by q, k and v."""
    compute = ops.value_and_grad(Weighted(backend), (0, 1, 2), None, has_aux=True)
    zero = Tensor(0, mindspore.int32)

    def call(*inputs: Array) -> list[Array]:
        (_, out), gradients = compute(*(Tensor(array.astype(np.float32)) for array in inputs), zero)
        return [out.asnumpy(), *(gradient.asnumpy() for gradient in gradients)]

    return call


def numpy_attention_and_gradients(q: Array, k: Array, v: Array, weight: Array, window: int) -> list[Array]:
    """The same by the formulas."""
    weights = attention_weights(q, k, window)
    dweights = weight @ v.swapaxes(-1, -2)
    dscores = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return [weights @ v, dscores @ k, dscores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ weight]


def random_inputs(batch: int, tokens: int, spread: float = 2.0) -> list[Array]:
    rng = np.random.default_rng(tokens)
    return [spread * rng.standard_normal((batch, 3, tokens, 8)) for _ in range(4)]


@pytest.mark.usefixtures("operator_by_operator")
@pytest.mark.parametrize(
    ("window", "batch", "tokens", "block"),
    [
        pytest.param(1, 3, 13, 4, id="window 1"),
        pytest.param(2, 1, 5, 1, id="blocks of one query"),
        pytest.param(7, 2, 23, 5, id="window and length no multiples of the block"),
        pytest.param(10, 3, 20, 5, id="window and length multiples of the block"),
        pytest.param(99, 3, 14, 5, id="window beyond T"),
        pytest.param(7, 1, 5, 16, id="block longer than the text"),
    ],
)
def test_attention_in_blocks_and_its_gradients_equal_numpy(window: int, batch: int, tokens: int, block: int) -> None:
    inputs = random_inputs(batch, tokens)
    found = compiled(SmallBlocks(small_config(window), block))(*inputs)
    expected = numpy_attention_and_gradients(*inputs, window)
    for name, ours, theirs in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=name)


@pytest.mark.usefixtures("operator_by_operator")
@pytest.mark.parametrize("window", [5, 11, 99])
def test_plain_attention_in_two_halves_and_its_gradients_equal_numpy(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "HALVED_TOKENS", 16)
    inputs = random_inputs(2, 22)
    found = compiled(plain.PlainAttention(small_config(window)))(*inputs)
    expected = numpy_attention_and_gradients(*inputs, window)
    for name, ours, theirs in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("backend", ["blocked", "plain"])
def test_graphs_of_attention_equal_numpy_as_operators_alone_do(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph of each kind, for it takes seconds to compile."""
    monkeypatch.setattr(plain, "HALVED_TOKENS", 16)
    config, inputs = small_config(7), random_inputs(2, 23)
    found = compiled(SmallBlocks(config, 5) if backend == "blocked" else plain.PlainAttention(config))(*inputs)
    for ours, theirs in zip(found, numpy_attention_and_gradients(*inputs, 7), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.usefixtures("operator_by_operator")
def test_scores_far_apart_neither_overflow_nor_pass_the_mask() -> None:
    """With scores in the thousands the mask, -6e4, still outweighs them."""
    inputs = random_inputs(2, 11, spread=30.0)
    out, *gradients = compiled(SmallBlocks(small_config(7), 5))(*inputs)
    expected = numpy_attention_and_gradients(*inputs, 7)[0]
    np.testing.assert_allclose(out, expected, atol=1e-3 * np.abs(expected).max())
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.usefixtures("operator_by_operator")
def test_blocks_shrink_to_keep_their_scores_in_bounds_and_the_numbers_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = random_inputs(1, 70)
    backend = BlockedAttention(small_config(20))
    assert backend.queries(3, 70) == 128
    monkeypatch.setattr(choose, "BLOCKED_SCORES", 5000)
    assert backend.queries(3, 70) == 32
    found = compiled(backend)(*inputs)
    for ours, theirs in zip(found, numpy_attention_and_gradients(*inputs, 20), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
