"""Change the number format of a checkpoint's weights (SPEC section 5, `dtype`).

Embedding and LayerNorm stay float32 unless asked otherwise; training state (`global_step` above all: 300001 would
become 299008 in bfloat16), whole numbers and truth values stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spark13b.ckpt.dtypes import BFLOAT16, FLOAT16, FLOAT32, Array, as_bytes, is_float, named
from spark13b.ckpt.tensors import Checkpoint, Derived, Recipe, TensorInfo
from spark13b.errors import InputError
from spark13b.model.names import is_embedding, is_norm, kind_of

_NUMBERS = 1 << 16  # at once: as float32 they stay in the processor's second cache
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
    recipes = []
    for name, info in source.infos.items():
        dtype_here = _target(info, dtype, cast_embedding=cast_embedding, cast_norms=cast_norms)
        if dtype_here == info.dtype:
            recipes.append(Recipe.same(source, name))
        else:
            work = _Cast(source, info, dtype_here, allow_overflow)
            target = TensorInfo(name, info.shape, dtype_here)
            recipes.append(Recipe(target, work.read, work.pieces, source.has_checksum(name)))
    return Derived(source.path, source.format, recipes, sources=[source], metadata=source.metadata)


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
    largest = _LARGEST.get(dtype, np.inf)
    overflows = 0
    wide = array if array.dtype == np.float64 else np.asarray(array, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if array.size and not (wide.max() <= largest and wide.min() >= -largest):  # nan fails it too
            overflows = int(np.count_nonzero(np.isfinite(wide) & (np.abs(wide) > largest)))
        return (wide.astype(np.float32) if dtype == BFLOAT16 else wide).astype(dtype), overflows


@dataclass(frozen=True)
class _Cast:
    """One tensor of `source` on its way to another number format, a piece at a time."""

    source: Checkpoint
    info: TensorInfo
    dtype: np.dtype[np.generic]
    allow_overflow: bool

    def read(self) -> Array:
        result = np.empty(self.info.size, self.dtype)
        done = 0
        for piece in self._converted():
            result[done : done + piece.size] = piece
            done += piece.size
        return result.reshape(self.info.shape)

    def pieces(self) -> Iterator[memoryview]:
        return map(as_bytes, self._converted())

    def _converted(self) -> Iterator[Array]:
        overflows = 0
        for piece in self.source.pieces(self.info.name):
            numbers = np.frombuffer(piece, self.info.dtype)
            converted = np.empty(numbers.size, self.dtype)
            for start in range(0, numbers.size, _NUMBERS):
                now = slice(start, start + _NUMBERS)
                converted[now], beyond = cast(numbers[now], self.dtype)
                overflows += beyond
            yield converted
        if overflows and not self.allow_overflow:
            what = f"{overflows:,} numbers of tensor '{self.info.name}' are beyond {_LARGEST[self.dtype]:g}"
            raise InputError(
                f"{what}, the largest {self.dtype.name}",
                where=self.source.path,
                fix="choose bfloat16, which reaches as far as float32, or add --allow-overflow to make them infinite",
            )


def _target(
    info: TensorInfo, dtype: np.dtype[np.generic], *, cast_embedding: bool, cast_norms: bool
) -> np.dtype[np.generic]:
    if kind_of(info.name) not in ("weight", "adapter") or not is_float(info.dtype):
        return info.dtype
    if (is_embedding(info.name) and not cast_embedding) or (is_norm(info.name) and not cast_norms):
        return FLOAT32
    return dtype
