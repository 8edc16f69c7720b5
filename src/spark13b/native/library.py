"""Find the compiled library and call it. All that C++ gets is checked here first: it reads memory as it is told."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spark13b.errors import InputError, JobError
from spark13b.native.build import cache_folder, library_name, source_folder
from spark13b.native.matrix import BFLOAT16, Matrix
from spark13b.native.packing import GROUPS, fits

# Sets of instructions, as SPARK13B_NATIVE names them and as people do; the library's numbers are their places, and each
# has those before it.
_LEVELS = {"baseline": "baseline", "avx2": "AVX2", "avx512": "AVX-512", "amx": "AMX", "amx-float32": "AMX-float32"}
_WORDS, LEVELS = tuple(_LEVELS), tuple(_LEVELS.values())
_AVX512, _AMX, _FLOAT_AMX = map(_WORDS.index, ("avx512", "amx", "amx-float32"))
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


@dataclass(frozen=True)
class Found:
    """A library or, when there is none to use, why."""

    library: Library | None
    reason: str


class Weights:
    """A model's parameters where they lie in memory, which they must not leave as long as this is used.

    `parameters`: the embedding (V, C), then each layer's 18 and the last norm's 2 in a checkpoint's order. Vectors are
    float32 arrays, matrices a Matrix, or an array of float32 or bfloat16. `cos` and `sin` (positions, D), sin with the
    minus of the first half. Raises ValueError for anything else.
    """

    def __init__(
        self, parameters: Sequence[np.ndarray | Matrix], cos: np.ndarray, sin: np.ndarray, heads: int, epsilon: float
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
                _check_matrix(matrix, shape, name)
                self.matrices.append(matrix)
            else:
                assert isinstance(parameter, np.ndarray), name
                _check(parameter, shape, np.float32, name)
                self.vectors.append(parameter)
        for table, name in ((cos, "cos"), (sin, "sin")):
            _check(table, (len(cos), self.size), np.float32, name)
        self.layers, self.heads, self.vocabulary, self.positions = layers, heads, vocabulary, len(cos)
        self.shape = _Shape(layers, hidden, heads, mlp, vocabulary, len(cos), epsilon)
        self.cos, self.sin = cos, sin
        self._matrices = (_Matrix * len(self.matrices))(*map(_described, self.matrices))
        self._vectors = addresses_of(self.vectors)

    def pointers(self) -> tuple[int, ...]:
        """Where C++ finds shape, matrices, vectors, cos and sin: the first arguments of its functions."""
        arrays = (self._vectors, self.cos, self.sin)
        return ctypes.addressof(self.shape), ctypes.addressof(self._matrices), *(one.ctypes.data for one in arrays)


class Library:
    """The compiled library at `path`, with no better instructions than `limit` of LEVELS, by default AMX.

    Raises OSError when the system does not load it.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.path = path
        loaded = ctypes.CDLL(str(path))
        loaded.spark_compiler.restype = ctypes.c_char_p
        self.compiler: str = loaded.spark_compiler().decode()
        self.best: int = loaded.spark_level()
        self.level = min(self.best, _AMX if limit is None else limit)
        self._lacking = "" if limit is None or limit <= self.best else LEVELS[limit]  # asked for, and not there
        # whether int8 and int4 weights are multiplied by whole numbers
        self.vnni = bool(loaded.spark_vnni()) and self.level >= _AVX512
        self._step = loaded.spark_decode_step
        pointer, number, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        self._step.argtypes = [*[pointer] * 5, number, number, *[pointer] * 3, small, pointer, *[small] * 3]
        self._step.restype = small
        self._product = loaded.spark_decode_product
        self._product.argtypes = [*[pointer] * 3, number, number, small, pointer, *[small] * 3]
        self._product.restype = small
        self._prefill = loaded.spark_prefill
        self._prefill.argtypes = [
            *[pointer] * 5,
            *[number] * 4,
            *[pointer] * 2,
            small,
            number,
            pointer,
            *[small] * 3,
        ]
        self._prefill.restype = small
        self._open_onednn = loaded.spark_open_onednn
        self._open_onednn.argtypes, self._open_onednn.restype = [ctypes.c_char_p], ctypes.c_int
        self._multiply = loaded.spark_multiply
        self._multiply.argtypes, self._multiply.restype = [pointer] * 5 + [small, small], small
        self._training_bytes = loaded.spark_training_bytes
        self._training_bytes.argtypes, self._training_bytes.restype = [pointer], number

    @cached_property
    def onednn(self) -> str | None:
        """The version of oneDNN that multiplies many rows, or None where it is not found; looked for once."""
        path = onednn_path()
        version: int = self._open_onednn(os.fsencode(path)) if path is not None else 0
        return f"{version // 100}.{version % 100}" if version else None

    def multiplier(self, compute_type: str) -> str | None:
        """What multiplies many rows of that type: AMX, vectors or oneDNN, in a word or two; None where nothing does."""
        onednn = self.onednn  # is looked for, whoever multiplies
        if self.level >= (_AMX if compute_type == "bfloat16" else _FLOAT_AMX):
            return "AMX"
        return "vectors" if compute_type == "float32" else f"oneDNN {onednn}" if onednn else None

    def step(
        self,
        weights: Weights,
        slots: int,
        ids: np.ndarray,
        positions: np.ndarray,
        rings: np.ndarray,
        *,
        threads: int,
        halves: bool = False,
        level: int | None = None,
        vnni: bool = True,
    ) -> np.ndarray:
        """A token of each text, `ids` (N,) at `positions` (N,), both int32 -> logits (N, V) float32 after each.

        `rings` (N, layers, 2): where the keys and values of a text lie, (H*slots, D) each, see `addresses_of`: float32,
        with `halves` bfloat16; the token's own are written there. `level`: of LEVELS; the best by default. `vnni`:
        int8 and int4 weights are multiplied by whole numbers where the processor can, from AVX-512 on. Raises
        ValueError for numbers out of range, JobError when memory ends.
        """
        count = len(ids)
        level = self.level if level is None else level
        _check(ids, (count,), np.int32, "ids")
        _check(positions, (count,), np.int32, "positions")
        _check(rings, (count, weights.layers, 2), np.uintp, "rings")
        if count < 1 or slots < 1 or threads < 1 or not 0 <= level <= self.best:
            raise ValueError(f"{count} texts, {slots} slots, {threads} threads, level {level}: one is out of range")
        if ids.min() < 0 or ids.max() >= weights.vocabulary:
            raise ValueError(f"ids go from {ids.min()} to {ids.max()}, the vocabulary is {weights.vocabulary}")
        if positions.min() < 0 or positions.max() >= weights.positions:
            raise ValueError(f"positions go from {positions.min()} to {positions.max()}, of {weights.positions}")
        if not rings.all() or np.unique(rings).size < rings.size:
            raise ValueError("rings are missing, or the same for two texts")
        logits = np.empty((count, weights.vocabulary), np.float32)
        status = self._step(
            *weights.pointers(),
            count,
            slots,
            *(array.ctypes.data for array in (ids, positions, rings)),
            halves,
            logits.ctypes.data,
            threads,
            level,
            vnni,
        )
        if status == 2:
            raise JobError("out of memory in a decode step", fix="use a smaller batch")
        if status != 0:
            raise ValueError("the native library refused the step")
        return logits

    def product(
        self,
        matrix: Matrix,
        x: np.ndarray,
        out: np.ndarray,
        *,
        threads: int,
        bias: np.ndarray | None = None,
        adds: bool = False,
        level: int | None = None,
        vnni: bool = True,
    ) -> None:
        """out (N, outputs) = x (N, inputs) by `matrix` + bias, or with `adds` out += that, as in `step`.

        The other arguments are those of `step`; for tests and measures. Raises ValueError for other shapes.
        """
        level = self.level if level is None else level
        outputs, inputs = matrix.shape
        _check_matrix(matrix, matrix.shape, "the matrix")
        _check(x, (len(x), inputs), np.float32, "x")
        _check(out, (len(x), outputs), np.float32, "out")
        if bias is not None:
            _check(bias, (outputs,), np.float32, "bias")
        pointers = [None if array is None else array.ctypes.data for array in (bias, x)]
        described = _described(matrix)
        numbers = len(x), inputs, adds, out.ctypes.data, threads, level, vnni
        if not 0 <= level <= self.best or self._product(ctypes.addressof(described), *pointers, *numbers) != 0:
            raise ValueError("the native library refused the product")

    def prefill(
        self,
        weights: Weights,
        slots: int,
        window: int,
        ids: np.ndarray,
        start: int,
        rings: np.ndarray,
        *,
        threads: int,
        wanted: int = 1,
        rounds: bool = False,
        halves: bool = False,
        level: int | None = None,
    ) -> np.ndarray:
        """Read `ids` (T,) int32 at positions `start` on -> logits (wanted, V) float32 of the last `wanted` of them.

        `rings` (layers, 2): where the text's keys and values lie, as of `step`, which hold what is before
        `start` and get what is read. A token sees `window` of them, itself among these. With `rounds` products are of
        bfloat16, with float32 sums. Raises ValueError for numbers out of range, JobError when memory ends.
        """
        level = self.level if level is None else level
        _check(ids, (len(ids),), np.int32, "ids")
        _check(rings, (weights.layers, 2), np.uintp, "rings")
        if not 0 <= start <= weights.positions - len(ids) or len(ids) < 1 or not 0 <= wanted <= len(ids):
            raise ValueError(f"{len(ids)} tokens at {start}, {wanted} wanted: one is out of range")
        if slots < 1 or window < 1 or threads < 1 or not 0 <= level <= self.best:
            raise ValueError(f"{slots} slots, window {window}, {threads} threads, level {level}: one is out of range")
        if ids.min() < 0 or ids.max() >= weights.vocabulary:
            raise ValueError(f"ids go from {ids.min()} to {ids.max()}, the vocabulary is {weights.vocabulary}")
        if not rings.all() or np.unique(rings).size < rings.size:
            raise ValueError("rings are missing, or the same twice")
        _ = self.onednn  # is looked for now
        logits = np.empty((wanted, weights.vocabulary), np.float32)
        status = self._prefill(
            *weights.pointers(),
            len(ids),
            start,
            slots,
            window,
            ids.ctypes.data,
            rings.ctypes.data,
            halves,
            wanted,
            logits.ctypes.data,
            rounds,
            threads,
            level,
        )
        if status == 2:
            raise JobError("out of memory while a prompt was read", fix="read it in smaller parts")
        if status == 3:
            raise JobError("a product of matrices failed", fix="SPARK13B_NATIVE=0 computes by MindSpore")
        if status != 0:
            raise ValueError("the native library refused to read")
        return logits

    def multiply(
        self,
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
        level = self.level if level is None else level
        (rows, depth), columns = a.shape, b.shape[1]
        if b.shape[0] != depth or out.shape != (rows, columns) or (bias is not None and bias.shape != (columns,)):
            raise ValueError(f"{a.shape} times {b.shape} does not fit {out.shape}")
        layouts = [number for array in (a, b, out) for number in _layout(array)]
        numbers = np.array([rows, columns, depth, *layouts, bias is not None, adds], np.int64)
        pointers = [None if array is None else array.ctypes.data for array in (numbers, a, b, bias, out)]
        _ = self.onednn  # is looked for now
        if self._multiply(*pointers, threads, level) != 0:
            raise JobError("there is neither AMX nor oneDNN, or it failed")

    def training_bytes(self, numbers: Sequence[int]) -> int:
        """What a step of training holds beside weights and gradients; nothing is made.

        `numbers`: texts, tokens of each, layers, hidden size, heads, width of gate and up, vocabulary; 0 or 1, for
        bfloat16, of products, of linear layers' weights and of the embedding; recompute; the adapters' rank, 0 without,
        and a bit for each linear layer that has one. Raises ValueError for numbers out of range.
        """
        given = np.array(numbers, np.int64)
        _check(given, (13,), np.int64, "numbers")
        if (found := self._training_bytes(given.ctypes.data)) < 0:
            raise ValueError(f"there is no step of training of {list(numbers)}")
        return int(found)

    def describe(self) -> str:
        """What it is, in a few words."""
        lacking = f" ({self._lacking} was asked for, and processor or compiler have it not)" if self._lacking else ""
        return f"{LEVELS[self.level]}{' with VNNI' if self.vnni else ''}{lacking}, compiled by {self.compiler}"


def addresses_of(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Where arrays lie: (N,) of addresses. The arrays must be kept."""
    return np.array([array.ctypes.data for array in arrays], np.uintp)


def onednn_path() -> Path | None:
    """The oneDNN that MindSpore brings; MindSpore itself is not imported."""
    found = importlib.util.find_spec("mindspore")
    if found is None or found.origin is None:
        return None
    return next(iter(sorted((Path(found.origin).parent / "lib").glob("libdnnl.so*"))), None)


def thread_count() -> int:
    """Threads of a step: OMP_NUM_THREADS, as of MindSpore, else the cores that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_library() -> Found:
    """The library to use: the one beside the source, else the one in the user's cache.

    SPARK13B_NATIVE=0 wants none; baseline, avx2, avx512, amx (the usual one) or amx-float32 is the best set of
    instructions that may be used. Raises InputError for another word.
    """
    wanted = os.environ.get("SPARK13B_NATIVE", "")
    if wanted == "0":
        return Found(None, "SPARK13B_NATIVE=0 switches it off")
    if wanted and wanted not in _WORDS:
        raise InputError(
            f"SPARK13B_NATIVE={wanted} is neither 0 nor one of {', '.join(_WORDS)}",
            where="the environment variable SPARK13B_NATIVE",
            fix="name one of these, 0 to compute by MindSpore, or unset it for the best that the processor has",
        )
    limit = _WORDS.index(wanted) if wanted else None
    try:
        name = library_name()
    except OSError as error:
        return Found(None, f"its source cannot be read: {error}")
    for folder in (source_folder(), cache_folder()):
        if (folder / name).is_file():
            return _loaded(folder / name, limit)
    return Found(None, "it is not built")


@cache
def _loaded(path: Path, limit: int | None) -> Found:
    try:
        return Found(Library(path, limit), "")
    except (OSError, AttributeError) as error:  # of another architecture or C library, or cut off
        return Found(None, f"it does not load: {error}")


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


def _two(parameter: np.ndarray | Matrix, name: str) -> tuple[int, ...]:
    if len(parameter.shape) != 2:
        raise ValueError(f"{name} is no matrix: {parameter.shape}")
    return parameter.shape


def _described(matrix: Matrix) -> _Matrix:
    scales = None if matrix.scales is None else matrix.scales.ctypes.data
    return _Matrix(matrix.array.ctypes.data, scales, matrix.type, matrix.group, matrix.shape[0])


def _check_matrix(matrix: Matrix, shape: tuple[int, ...], name: str) -> None:
    if matrix.group:
        check_quantized(matrix, name)
        if matrix.shape != shape:
            raise ValueError(f"{name} must be {shape}; got {matrix.shape}")
        return
    dtype = matrix.array.dtype
    if dtype not in (np.float32, np.uint16, BFLOAT16):
        raise ValueError(f"{name} must be float32 or bfloat16; got {dtype}")
    _check(matrix.array, shape, dtype, name)


def check_quantized(matrix: Matrix, name: str) -> None:
    """Raise ValueError where the arrays of a matrix of int8 or int4 are not of one another's shape."""
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
    _check(matrix.array, matrix.array.shape, matrix.array.dtype, name)
    scales = matrix.scales
    _check(scales, (outputs, inputs // matrix.group), np.uint16 if scales.dtype == np.uint16 else BFLOAT16, name)


def _check(array: np.ndarray, shape: tuple[int, ...], dtype: npt.DTypeLike, name: str) -> None:
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        found = f"{array.dtype} {array.shape}" + ("" if array.flags.c_contiguous else ", not contiguous")
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, and contiguous; got {found}")
