"""Products of many rows in pieces, by vectors, by AMX and by oneDNN, beside NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from spark13b.native.library import Library
from spark13b.native.matrix import BFLOAT16
from spark13b.native.products import multiply

AMX = 4  # for both types


@pytest.fixture(params=[0, 1, 2, AMX], ids=["baseline", "avx2", "avx512", "amx"])
def level(request: pytest.FixtureRequest, native_library: Library) -> int:
    """Of LEVELS. Below AMX vectors multiply float32, and oneDNN bfloat16; it multiplies few rows of both always."""
    if native_library.best < request.param:
        pytest.skip("this processor has no such instructions")
    return int(request.param)


def needs_bfloat16(library: Library, level: int) -> None:
    if level < AMX and library.onednn is None:
        pytest.skip("there is neither AMX nor a oneDNN")


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1), (5, 7, 9), (63, 65, 64), (64, 1, 1), (65, 47, 130), (513, 130, 65), (600, 1700, 96), (101, 40, 900)],
    ids=str,
)
def test_products_in_all_layouts_are_numpys(
    sizes: tuple[int, int, int], dtype: np.dtype, level: int, native_library: Library
) -> None:
    if dtype == BFLOAT16:
        needs_bfloat16(native_library, level)
    rows, columns, depth = sizes
    rng = np.random.default_rng(rows)
    a, b = (rng.standard_normal(shape, np.float32).astype(dtype) for shape in ((rows, depth), (depth, columns)))
    bias = rng.standard_normal(columns).astype(np.float32)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    for left in (a, np.asfortranarray(a)):
        for right in (b, np.asfortranarray(b)):
            out = np.full((rows, columns), 2, np.float32)
            multiply(native_library, left, right, out, threads=2, level=level)
            np.testing.assert_allclose(out, expected, atol=1e-5 * depth)
            multiply(native_library, left, right, out, bias=bias, adds=True, threads=1, level=level)
            np.testing.assert_allclose(out, 2 * expected + bias, atol=2e-5 * depth)


def test_products_of_float32_by_amx_keep_its_24_bits(native_library: Library) -> None:
    """Numbers of very different sizes; errors by the sum of sizes. With bfloat16 alone they would be 2^-9."""
    if native_library.best < AMX:
        pytest.skip("this processor has no AMX")
    rng = np.random.default_rng(5)
    for depth in (40, 700, 3000):
        a, b = (
            (rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 4, shape)).astype(np.float32)
            for shape in ((70, depth), (depth, 90))
        )
        exact = a.astype(np.float64) @ b.astype(np.float64)
        sizes = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
        out = np.empty(exact.shape, np.float32)
        multiply(native_library, a, b, out, threads=1, level=AMX)
        errors = (out - exact) / sizes
        assert np.sqrt(np.mean(errors**2)) < 2**-24
        assert np.abs(errors).max() < 2**-21


def test_what_is_no_number_stays_none_in_its_row_and_column(native_library: Library, level: int) -> None:
    a, b = np.ones((70, 150), np.float32), np.ones((150, 60), np.float32)
    a[3, 7], b[9, 5] = np.nan, np.inf
    out = np.empty((70, 60), np.float32)
    multiply(native_library, a, b, out, threads=2, level=level)
    found = ~np.isfinite(out)
    assert found[3].all()
    assert found[:, 5].all()
    found[3], found[:, 5] = False, False
    assert not found.any()


def test_products_by_vectors_write_nothing_beside_their_result(native_library: Library) -> None:
    """C is a part of a wider matrix, all else of which stays; sums of 300 numbers are made in three parts."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((67, 300), (300, 83)))
    for level in range(min(native_library.best, 2) + 1):
        whole = np.full((69, 100), 7, np.float32)
        multiply(native_library, a, b, whole[1:68, 5:88], threads=2, level=level)
        np.testing.assert_allclose(whole[1:68, 5:88], a.astype(np.float64) @ b, atol=1e-4)
        whole[1:68, 5:88] = 7
        assert (whole == 7).all()


def test_pieces_have_the_same_bits_for_any_number_of_threads(native_library: Library, level: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((700, 300), (300, 1000)))
    outs = [np.empty((700, 1000), np.float32) for _ in range(3)]
    for threads, out in enumerate(outs, start=1):
        multiply(native_library, a, b, out, threads=threads, level=level)
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])


def test_many_deep_rows_are_packed_part_after_part(native_library: Library, level: int) -> None:
    """48 MB of packed rows are in memory at once: here up to three times as many, in two rounds or more."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((1040, 16000), (16000, 3)))
    out = np.empty((1040, 3), np.float32)
    multiply(native_library, a, b, out, threads=2, level=level)
    np.testing.assert_allclose(out, a.astype(np.float64) @ b, atol=1e-5 * np.sqrt(16000) * 3)


def test_a_product_may_be_written_as_bfloat16(native_library: Library, level: int) -> None:
    needs_bfloat16(native_library, level)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, np.float32).astype(BFLOAT16) for shape in ((70, 30), (30, 90)))
    out = np.empty((70, 90), BFLOAT16)
    multiply(native_library, a, b, out, threads=2, level=level)
    expected = a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_allclose(out.astype(np.float32), expected, rtol=2**-8, atol=2**-8)
    multiply(native_library, a, b, out, adds=True, threads=1, level=level)
    np.testing.assert_allclose(out.astype(np.float32), 2 * expected, rtol=2**-7, atol=2**-7)


def test_shapes_that_do_not_fit_are_refused(native_library: Library) -> None:
    a, out = np.ones((3, 4), np.float32), np.empty((3, 5), np.float32)
    with pytest.raises(ValueError, match="does not fit"):
        multiply(native_library, a, np.ones((3, 5), np.float32), out, threads=1)
    with pytest.raises(ValueError, match="neither"):
        multiply(native_library, a[:, ::2], np.ones((2, 5), np.float32), out, threads=1)
