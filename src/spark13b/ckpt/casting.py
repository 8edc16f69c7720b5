"""Change the number format of a checkpoint's weights (SPEC section 5, `dtype`).

Embedding and LayerNorm stay float32 unless asked otherwise; training state (`global_step` above all: 300001 would
become 299008 in bfloat16), whole numbers and truth values stay as they are.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from spark13b.ckpt.dtypes import BFLOAT16, FLOAT16, FLOAT32, Array, is_float, named
from spark13b.model.names import is_embedding, is_norm, kind_of
from spark13b.ckpt.tensors import Checkpoint, Derived, TensorInfo
from spark13b.errors import InputError

_CHUNK = 1 << 20  # numbers; what is worked on stays in the processor's cache
_LARGEST = {
    FLOAT16: float(np.finfo(np.float16).max),  # 65504
    BFLOAT16: (2 - 2**-7) * 2.0**127,
    FLOAT32: float(np.finfo(np.float32).max),
}


def with_dtype(
    source: Checkpoint,
    dtype: np.dtype[np.generic],
    *,
    cast_embedding: bool = False,
    cast_norms: bool = False,
    allow_overflow: bool = False,
) -> Checkpoint:
    """`source` with its weights and adapters as `dtype`, rounded to nearest even.

    Reading a tensor raises InputError when a finite number of it is beyond `dtype`'s largest and not `allow_overflow`.
    """
    recipes = {}
    for name, info in source.infos.items():
        target = _target(info, dtype, cast_embedding=cast_embedding, cast_norms=cast_norms)
        recipes[name] = (TensorInfo(name, info.shape, target), partial(_read_as, source, info, target, allow_overflow))
    checked = [name for name in source.infos if source.has_checksum(name)]
    return Derived(source.path, source.format, recipes, sources=[source], metadata=source.metadata, checked=checked)


def target_dtype(name: str) -> np.dtype[np.generic]:
    """The number format to convert to, by name. Raises InputError."""
    if name not in ("bfloat16", "float16", "float32"):
        fix = "choose bfloat16, float16 or float32"
        raise InputError(f"weights cannot be converted to '{name}'", where="--dtype", fix=fix)
    return named(name)


def cast(array: Array, dtype: np.dtype[np.generic]) -> tuple[Array, int]:
    """`array` as `dtype`, and how many of its finite numbers were beyond the target's largest (they become inf).

    By way of float32, which holds bfloat16 and float16 exactly and for which both have fast loops.
    """
    flat = array.reshape(-1)
    result = np.empty(flat.shape, dtype)
    largest = _LARGEST.get(dtype, np.inf)
    overflows = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, _CHUNK):
            piece = flat[start : start + _CHUNK]
            wide = piece if piece.dtype == np.float64 else np.asarray(piece, np.float32)
            if largest < np.inf and not (wide.max() <= largest and wide.min() >= -largest):  # nan fails it too
                overflows += int(np.count_nonzero(np.isfinite(wide) & (np.abs(wide) > largest)))
            result[start : start + _CHUNK] = wide.astype(np.float32) if dtype == BFLOAT16 else wide
    return result.reshape(array.shape), overflows


def _target(
    info: TensorInfo, dtype: np.dtype[np.generic], *, cast_embedding: bool, cast_norms: bool
) -> np.dtype[np.generic]:
    if kind_of(info.name) not in ("weight", "adapter") or not is_float(info.dtype):
        return info.dtype
    if (is_embedding(info.name) and not cast_embedding) or (is_norm(info.name) and not cast_norms):
        return FLOAT32
    return dtype


def _read_as(source: Checkpoint, info: TensorInfo, dtype: np.dtype[np.generic], allow_overflow: bool) -> Array:
    array = source.read(info.name)
    if array.dtype == dtype:
        return array
    result, overflows = cast(array, dtype)
    if overflows and not allow_overflow:
        raise InputError(
            f"{overflows:,} numbers of tensor '{info.name}' are beyond {_LARGEST[dtype]:g}, the largest {dtype.name}",
            where=source.path,
            fix="choose bfloat16, which reaches as far as float32, or add --allow-overflow to make them infinite",
        )
    return result
