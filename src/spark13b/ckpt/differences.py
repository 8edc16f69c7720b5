"""How two checkpoints differ: names, shapes, and the largest difference of every tensor's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spark13b.ckpt.dtypes import Array, as_bytes
from spark13b.ckpt.metering import byte_meter
from spark13b.ckpt.tensors import Checkpoint
from spark13b.progress import SILENT, Progress

_CHUNK = 1 << 20  # numbers


@dataclass(frozen=True)
class Difference:
    """How one tensor differs. `absolute` and `relative` are the largest over its numbers, None for another shape.

    relative: |a - b| / max(|a|, |b|). A nan that only one side has counts as infinite.
    """

    name: str
    how: str
    absolute: float | None = None
    relative: float | None = None


def differences(one: Checkpoint, two: Checkpoint, *, progress: Progress = SILENT) -> Iterator[Difference]:
    """Every tensor that differs, in the order of `one`; values are compared across number formats."""
    yield from (Difference(name, "only in the first") for name in one if name not in two)
    yield from (Difference(name, "only in the second") for name in two if name not in one)
    common = [name for name in one if name in two]
    total = sum(one.infos[name].nbytes for name in common)
    with byte_meter(progress, "comparing", total) as advance:
        for name in common:
            first, second = one.infos[name], two.infos[name]
            if first.shape != second.shape:
                yield Difference(name, f"shapes {list(first.shape)} and {list(second.shape)}")
            else:
                absolute, relative = largest_difference(one.read(name), two.read(name))
                if absolute > 0:
                    how = "values" if first.dtype == second.dtype else f"values ({first.dtype} and {second.dtype})"
                    yield Difference(name, how, absolute, relative)
            advance(first.nbytes)


def largest_difference(one: Array, two: Array) -> tuple[float, float]:
    """(largest |a - b|, largest |a - b| / max(|a|, |b|)) of two arrays of the same shape; 0, 0 when they are equal."""
    if one.dtype == two.dtype and as_bytes(one) == as_bytes(two):
        return 0.0, 0.0
    absolute = relative = 0.0
    flat, other = one.reshape(-1), two.reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, flat.size, _CHUNK):
            a = flat[start : start + _CHUNK].astype(np.float64)
            b = other[start : start + _CHUNK].astype(np.float64)
            gap = np.abs(a - b)
            gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0  # inf - inf is nan
            gap[np.isnan(gap)] = np.inf
            scale = np.maximum(np.abs(a), np.abs(b))
            ratio = np.divide(gap, scale, out=np.zeros_like(gap), where=(gap > 0) & (scale > 0))
            ratio[np.isnan(ratio)] = np.inf
            absolute, relative = max(absolute, float(gap.max())), max(relative, float(ratio.max()))
    return absolute, relative
