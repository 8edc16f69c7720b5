"""Single matrix products, as prompts and training have them and as a step of decoding has; for tests and measures."""

from __future__ import annotations

import ctypes

import numpy as np

from spark13b.errors import JobError
from spark13b.native.arrays import check_array
from spark13b.native.library import Library
from spark13b.native.matrix import BFLOAT16, Matrix
from spark13b.native.weights import check_matrix, described


def multiply(
    library: Library,
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    *,
    threads: int,
    bias: np.ndarray | None = None,
    adds: bool = False,
    level: int | None = None,
) -> None:
    """out (M, N) = a (M, K) b (K, N) + bias (N,), or with `adds` out += that; for tests and measures.

    `a`, `b`, `out`: float32 or bfloat16, rows or columns one after the other. `level`: of LEVELS; below AMX
    bfloat16 is oneDNN's. Raises ValueError for other arrays, JobError where oneDNN is missing or fails.
    """
    level = library.level if level is None else level
    (rows, depth), columns = a.shape, b.shape[1]
    if b.shape[0] != depth or out.shape != (rows, columns) or (bias is not None and bias.shape != (columns,)):
        raise ValueError(f"{a.shape} times {b.shape} does not fit {out.shape}")
    layouts = [number for array in (a, b, out) for number in _layout(array)]
    numbers = np.array([rows, columns, depth, *layouts, bias is not None, adds], np.int64)
    pointers = [None if array is None else array.ctypes.data for array in (numbers, a, b, bias, out)]
    _ = library.onednn  # is looked for now
    status = library.calls.spark_multiply(*pointers, threads, level)
    if status == 3:
        raise JobError("out of memory in a product of matrices", fix="multiply smaller ones")
    if status != 0:
        raise JobError("there is neither AMX nor oneDNN, or it failed")


def decode_product(
    library: Library,
    matrix: Matrix,
    x: np.ndarray,
    out: np.ndarray,
    *,
    threads: int,
    bias: np.ndarray | None = None,
    adds: bool = False,
    level: int | None = None,
    whole_numbers: bool = True,
) -> None:
    """out (N, outputs) = x (N, inputs) by `matrix` + bias, or with `adds` out += that, as in `decode_step`.

    The other arguments are those of `decode_step`; for tests and measures. Raises ValueError for other shapes.
    """
    level = library.level if level is None else level
    outputs, inputs = matrix.shape
    check_matrix(matrix, matrix.shape, "the matrix")
    check_array(x, (len(x), inputs), np.float32, "x")
    check_array(out, (len(x), outputs), np.float32, "out")
    if bias is not None:
        check_array(bias, (outputs,), np.float32, "bias")
    pointers = [None if array is None else array.ctypes.data for array in (bias, x)]
    told = described(matrix)
    numbers = len(x), inputs, adds, out.ctypes.data, threads, level, whole_numbers
    call = library.calls.spark_decode_product
    if not 0 <= level <= library.best or call(ctypes.addressof(told), *pointers, *numbers) != 0:
        raise ValueError("the native library refused the product")


def _layout(array: np.ndarray) -> tuple[int, int, int]:
    """Type, and elements from a row to the next and from a column to the next."""
    row, column = (step // array.itemsize for step in array.strides)
    if array.dtype not in (np.float32, BFLOAT16) or 1 not in (row, column):
        raise ValueError(f"{array.dtype} with strides {array.strides} is neither rows nor columns of a known type")
    if column == 1:
        row = max(row, array.shape[1])
    else:
        column = max(column, array.shape[0])
    return int(array.dtype == BFLOAT16), row, column
