"""A model's weights as C++ reads them, and the checks of each matrix of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from spark13b.native.arrays import addresses_of, check_array
from spark13b.native.matrix import BFLOAT16, Matrix
from spark13b.native.packing import GROUPS, fits

_LAYER = 18  # parameters of a layer


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "heads", "mlp", "vocabulary", "positions")),
        ("epsilon", ctypes.c_float),
    ]


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("data", "scales")),
        *((name, ctypes.c_int32) for name in ("type", "group")),
        ("outputs", ctypes.c_int64),
    ]


class _Adapters(ctypes.Structure):
    _fields_ = [("values", ctypes.c_void_p), ("rank", ctypes.c_int64), ("scale", ctypes.c_float)]


class Weights:
    """A model's parameters where they lie in memory, which they must not leave as long as this is used.

    `parameters`: the embedding (V, C), then each layer's 18 and the last norm's 2 in a checkpoint's order. Vectors are
    float32 arrays, matrices a Matrix, or an array of float32, bfloat16 or float16. `cos` and `sin` (positions, D), sin
    with the minus of the first half. `adapters`: A (rank, inputs) and B (outputs, rank), with its scale, of each
    layer's seven linear layers, float32, None where there is none; empty without adapters. Raises ValueError for
    anything else.
    """

    def __init__(
        self,
        parameters: Sequence[np.ndarray | Matrix],
        cos: np.ndarray,
        sin: np.ndarray,
        heads: int,
        epsilon: float,
        adapters: Sequence[tuple[np.ndarray, np.ndarray] | None] = (),
    ) -> None:
        layers, rest = divmod(len(parameters) - 3, _LAYER)
        if layers < 1 or rest:
            raise ValueError(f"{len(parameters)} parameters are not those of a model")
        vocabulary, hidden = _two(parameters[0], "parameter 0")
        mlp, _ = _two(parameters[13], "parameter 13")
        if heads < 1 or hidden % heads or hidden // heads % 2:
            raise ValueError(f"{heads} heads do not divide {hidden}")
        self.size = hidden // heads
        row, square = (hidden,), (hidden, hidden)
        layer = [row, row, *[square, row] * 4, row, row, *[(mlp, hidden), (mlp,)] * 2, (hidden, mlp), row]
        shapes = [(vocabulary, hidden), *layer * layers, row, row]
        self.matrices: list[Matrix] = []
        self.vectors: list[np.ndarray] = []
        for number, (parameter, shape) in enumerate(zip(parameters, shapes, strict=True)):
            name = f"parameter {number}"
            if len(shape) == 2:
                matrix = parameter if isinstance(parameter, Matrix) else Matrix(parameter)
                check_matrix(matrix, shape, name)
                self.matrices.append(matrix)
            else:
                assert isinstance(parameter, np.ndarray), name
                check_array(parameter, shape, np.float32, name)
                self.vectors.append(parameter)
        for table, name in ((cos, "cos"), (sin, "sin")):
            check_array(table, (len(cos), self.size), np.float32, name)
        self.layers, self.heads, self.vocabulary, self.positions = layers, heads, vocabulary, len(cos)
        self.shape = _Shape(layers, hidden, heads, mlp, vocabulary, len(cos), epsilon)
        self.cos, self.sin = cos, sin
        self._matrices = (_Matrix * len(self.matrices))(*map(described, self.matrices))
        self._vectors = addresses_of(self.vectors)
        self._pairs = list(adapters)  # are kept
        self._adapters = self._described_adapters() if any(self._pairs) else None

    def addresses(self) -> tuple[int, int]:
        """Where C++ finds matrices and vectors."""
        return ctypes.addressof(self._matrices), self._vectors.ctypes.data

    def pointers(self) -> tuple[int, ...]:
        """Where C++ finds shape, matrices, vectors, cos, sin and adapters: the first arguments of its functions."""
        arrays = (one.ctypes.data for one in (self._vectors, self.cos, self.sin))
        adapters = 0 if self._adapters is None else ctypes.addressof(self._adapters)
        return ctypes.addressof(self.shape), ctypes.addressof(self._matrices), *arrays, adapters

    def _described_adapters(self) -> _Adapters:
        """The adapters as C++ is told of them. Raises ValueError where they do not fit the matrices."""
        matrices = self.matrices[1:]
        if len(self._pairs) != len(matrices):
            raise ValueError(f"{len(self._pairs)} adapters are not those of {len(matrices)} linear layers")
        rank = next(len(pair[0]) for pair in self._pairs if pair is not None)
        self._values = np.zeros((len(matrices), 2), np.uintp)
        for number, (pair, matrix) in enumerate(zip(self._pairs, matrices, strict=True)):
            if pair is None:
                continue
            outputs, inputs = matrix.shape
            check_array(pair[0], (rank, inputs), np.float32, f"A of linear layer {number}")
            check_array(pair[1], (outputs, rank), np.float32, f"B of linear layer {number}")
            self._values[number] = addresses_of(pair)
        return _Adapters(self._values.ctypes.data, rank, 1.0)


def described(matrix: Matrix) -> _Matrix:
    """A checked matrix as C++ is told of it; its arrays must be kept."""
    scales = None if matrix.scales is None else matrix.scales.ctypes.data
    return _Matrix(matrix.array.ctypes.data, scales, matrix.type, matrix.group, matrix.shape[0])


def check_matrix(matrix: Matrix, shape: tuple[int, ...], name: str) -> None:
    """Raise ValueError, with its `name`, where a matrix is not of that shape or C++ would read beyond its arrays."""
    if matrix.group:
        _check_quantized(matrix, name)
        if matrix.shape != shape:
            raise ValueError(f"{name} must be {shape}; got {matrix.shape}")
        return
    dtype = matrix.array.dtype
    if dtype not in (np.float32, np.uint16, BFLOAT16, np.float16):
        raise ValueError(f"{name} must be float32, bfloat16 or float16; got {dtype}")
    check_array(matrix.array, shape, dtype, name)


def _check_quantized(matrix: Matrix, name: str) -> None:
    """The arrays of a matrix of int8 or int4 are of one another's shape."""
    if (
        matrix.array.dtype not in (np.int8, np.uint8)
        or matrix.scales is None
        or matrix.array.ndim != 2
        or matrix.group not in GROUPS
    ):
        raise ValueError(f"{name} is no int8 or int4 with scales of a group of {matrix.group}")
    outputs, inputs = matrix.shape
    if not fits(inputs, matrix.group):
        raise ValueError(f"{name} has rows of {inputs}, which groups of {matrix.group} do not fit")
    check_array(matrix.array, matrix.array.shape, matrix.array.dtype, name)
    scales = matrix.scales
    check_array(scales, (outputs, inputs // matrix.group), np.uint16 if scales.dtype == np.uint16 else BFLOAT16, name)


def _two(parameter: np.ndarray | Matrix, name: str) -> tuple[int, ...]:
    if len(parameter.shape) != 2:
        raise ValueError(f"{name} is no matrix: {parameter.shape}")
    return parameter.shape
