"""Number formats of tensors: one numpy dtype for each, and its name in every file format.

bfloat16 is `ml_dtypes.bfloat16` everywhere: numpy has none of its own, and MindSpore's tensors take it as it is.
MindSpore's own (`mindspore.common.np_dtype.bfloat16`, what `Tensor.asnumpy` returns) is another numpy type for the same
bits: `canonical` turns it into ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from spark13b.errors import InputError, nearest

Array = NDArray[np.generic]

BFLOAT16: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
FLOAT16: np.dtype[np.generic] = np.dtype(np.float16)
FLOAT32: np.dtype[np.generic] = np.dtype(np.float32)
# Bytes that are read, checked, converted and written at once. They stay in the processor's cache on the way, and a disk
# is read five times as fast as in one call for a whole tensor, which defeats the kernel's reading ahead.
PIECE = 1 << 20
_FLOATS = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class _Names:
    """What one number format is called in MindSpore's files, in safetensors, and as torch's storage and dtype."""

    mindspore: str
    safetensors: str
    torch_storage: str


_NAMES: dict[str, _Names] = {
    "float64": _Names("Float64", "F64", "DoubleStorage"),
    "float32": _Names("Float32", "F32", "FloatStorage"),
    "float16": _Names("Float16", "F16", "HalfStorage"),
    "bfloat16": _Names("BFloat16", "BF16", "BFloat16Storage"),
    "int64": _Names("Int64", "I64", "LongStorage"),
    "int32": _Names("Int32", "I32", "IntStorage"),
    "int16": _Names("Int16", "I16", "ShortStorage"),
    "int8": _Names("Int8", "I8", "CharStorage"),
    "uint64": _Names("UInt64", "U64", ""),  # torch gave these three no storage class
    "uint32": _Names("UInt32", "U32", ""),
    "uint16": _Names("UInt16", "U16", ""),
    "uint8": _Names("UInt8", "U8", "ByteStorage"),
    "bool": _Names("Bool", "BOOL", "BoolStorage"),
}


def named(name: str) -> np.dtype[np.generic]:
    """The dtype called `name`, e.g. "bfloat16". Raises InputError."""
    if name not in _NAMES:
        near = nearest(name, _NAMES)
        fix = f"did you mean '{near}'? " if near else ""
        raise InputError(f"there is no number format '{name}'", fix=f"{fix}known are {', '.join(_NAMES)}")
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


MINDSPORE: dict[str, np.dtype[np.generic]] = {names.mindspore: named(name) for name, names in _NAMES.items()}
SAFETENSORS: dict[str, np.dtype[np.generic]] = {names.safetensors: named(name) for name, names in _NAMES.items()}
TORCH_STORAGES: dict[str, np.dtype[np.generic]] = {
    names.torch_storage: named(name) for name, names in _NAMES.items() if names.torch_storage
}
TORCH_DTYPES: dict[str, np.dtype[np.generic]] = {name: named(name) for name in _NAMES}


def mindspore_name(dtype: np.dtype[np.generic]) -> str:
    """The `tensor_type` of MindSpore's files."""
    return _names(dtype).mindspore


def safetensors_name(dtype: np.dtype[np.generic]) -> str:
    """The `dtype` of a safetensors header."""
    return _names(dtype).safetensors


def torch_storage_name(dtype: np.dtype[np.generic]) -> str:
    """torch's storage class; raises InputError for formats that have none."""
    name = _names(dtype).torch_storage
    if not name:
        raise InputError(f"a torch file cannot hold {dtype.name}", fix="write safetensors or ckpt")
    return name


def is_float(dtype: np.dtype[np.generic]) -> bool:
    """Whether the numbers have fractions (numpy counts bfloat16 among none of its kinds)."""
    return dtype.name in _FLOATS


def canonical(array: Array) -> Array:
    """The same numbers as a C-contiguous little-endian array of a known dtype; no copy where none is needed."""
    if array.dtype.name == "bfloat16":
        if array.dtype != BFLOAT16:  # MindSpore's own type; as bits, because numpy knows no way between the two
            array = array.view(np.uint16).view(BFLOAT16)
    elif array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    _names(array.dtype)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(array.shape)


def to_float32(array: Array) -> NDArray[np.float32]:
    """The numbers as float32; exact for bfloat16 and float16. No copy when they are float32 already."""
    return np.asarray(canonical(array), dtype=np.float32)


def as_bytes(array: Array) -> memoryview:
    """The bytes of a C-contiguous array, without a copy (memoryview knows no bfloat16)."""
    return array.reshape(-1).view(np.uint8).data


def pieces_of(array: Array) -> Iterator[memoryview]:
    """The bytes of an array of any layout, in pieces of at most `PIECE` bytes."""
    data = as_bytes(canonical(array))
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


def _names(dtype: np.dtype[np.generic]) -> _Names:
    names = _NAMES.get(dtype.name)
    if names is None:
        raise InputError(f"checkpoints cannot hold {dtype.name}", fix=f"known are {', '.join(_NAMES)}")
    return names
