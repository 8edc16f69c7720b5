"""The mask of the window and the rotary tables, operator by operator against their formulas."""

from __future__ import annotations

import mindspore
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from model.golden_config import golden_config
from model.numpy_model import rope, seen
from spark13b.model.attention.band import FORBIDDEN, band_bias
from spark13b.model.layers import gelu
from spark13b.model.rope import Rotate
from spark13b.model.rope_table import rope_table


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 2, 5, 12]), st.sampled_from([0, 1, 7]), st.integers(1, 25))
def test_the_bias_of_the_last_queries_forbids_what_the_window_does_not_show(
    queries: int, earlier: int, window: int
) -> None:
    keys = queries + earlier
    bias = band_bias(Tensor(0, mindspore.int32), queries, keys, window, mindspore.float32).asnumpy()
    expected = np.where(seen(keys, window)[earlier:], 0.0, FORBIDDEN)
    np.testing.assert_array_equal(bias, expected.astype(np.float32))


def test_what_is_forbidden_is_finite_in_float16_and_weighs_nothing() -> None:
    assert np.isfinite(np.float16(FORBIDDEN))
    assert np.exp(np.float16(FORBIDDEN)) == 0


def test_the_rotary_table_is_exact_at_the_end_of_the_context() -> None:
    """In float32 the angle of position 32767 would be off by 2e-3."""
    config = golden_config(seq_length=32768)
    cos, sin = rope_table(config)
    assert cos.dtype == sin.dtype == np.float64
    for pair in range(8):
        angle = 32767 * 1e6 ** (-pair / 8)
        np.testing.assert_allclose(cos[-1, [pair, pair + 8]], np.cos(angle), atol=1e-9)
        np.testing.assert_allclose(sin[-1, [pair, pair + 8]], [-np.sin(angle), np.sin(angle)], atol=1e-9)


def test_rotating_equals_the_formula() -> None:
    config = golden_config(rope_theta=1e4)
    cos, sin = (Tensor(table[:21].astype(np.float32)) for table in rope_table(config))
    z = np.random.default_rng(0).standard_normal((2, 4, 21, 16))
    found = Rotate(config)(Tensor(z.astype(np.float32)), cos, sin).asnumpy()
    np.testing.assert_allclose(found, rope(z, 1e4), atol=1e-5)


def test_gelu_is_the_tanh_form_far_out_too() -> None:
    z = np.concatenate((np.linspace(-30, 30, 2001), [-1e4, 1e4]))
    expected = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    np.testing.assert_allclose(gelu(Tensor(z.astype(np.float32))).asnumpy(), expected, atol=2e-6, rtol=1e-5)
