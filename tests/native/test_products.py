"""Products of many rows by oneDNN in pieces, beside NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from spark13b.native.library import Library
from spark13b.native.matrix import BFLOAT16


@pytest.fixture(scope="module", autouse=True)
def onednn(native_library: Library) -> None:
    if native_library.onednn is None:
        pytest.skip("there is no oneDNN in this MindSpore")


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 7, 9), (63, 65, 64), (513, 130, 65), (600, 1700, 96)], ids=str)
def test_products_in_all_layouts_are_numpys(
    sizes: tuple[int, int, int], dtype: np.dtype, native_library: Library
) -> None:
    rows, columns, depth = sizes
    rng = np.random.default_rng(rows)
    a, b = (rng.standard_normal(shape, np.float32).astype(dtype) for shape in ((rows, depth), (depth, columns)))
    bias = rng.standard_normal(columns).astype(np.float32)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    for left in (a, np.asfortranarray(a)):
        for right in (b, np.asfortranarray(b)):
            out = np.full((rows, columns), 2, np.float32)
            native_library.multiply(left, right, out, threads=2)
            np.testing.assert_allclose(out, expected, atol=1e-5 * depth)
            native_library.multiply(left, right, out, bias=bias, adds=True, threads=1)
            np.testing.assert_allclose(out, 2 * expected + bias, atol=2e-5 * depth)


def test_pieces_have_the_same_bits_for_any_number_of_threads(native_library: Library) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((700, 300), (300, 1000)))
    outs = [np.empty((700, 1000), np.float32) for _ in range(3)]
    for threads, out in enumerate(outs, start=1):
        native_library.multiply(a, b, out, threads=threads)
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])


def test_a_product_may_be_written_as_bfloat16(native_library: Library) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, np.float32).astype(BFLOAT16) for shape in ((70, 30), (30, 90)))
    out = np.empty((70, 90), BFLOAT16)
    native_library.multiply(a, b, out, threads=2)
    expected = a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_allclose(out.astype(np.float32), expected, rtol=2**-8, atol=2**-8)


def test_shapes_that_do_not_fit_are_refused(native_library: Library) -> None:
    a, out = np.ones((3, 4), np.float32), np.empty((3, 5), np.float32)
    with pytest.raises(ValueError, match="does not fit"):
        native_library.multiply(a, np.ones((3, 5), np.float32), out, threads=1)
    with pytest.raises(ValueError, match="neither"):
        native_library.multiply(a[:, ::2], np.ones((2, 5), np.float32), out, threads=1)
