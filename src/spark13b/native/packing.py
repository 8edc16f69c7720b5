"""Weights as int8 or int4 with a scale for each group of inputs: round them, pack them for the library, and back.

A weight is a level, a whole number from -127 to 127, by its group's scale, a bfloat16; the product is exact in float32.
An int8 weight is its level. An int4 weight is the number of one of the 16 `LEVELS`, which lie closer where weights are
dense. Their places were fitted to groups of 64 normal and t-distributed numbers: at 4 bits the squared error is 0.82 of
that with equal distances for normal weights, 0.62 for those of 5 degrees of freedom.
"""

from __future__ import annotations

import numpy as np

from spark13b.native.matrix import BFLOAT16, Matrix

GROUPS = (32, 64, 128)  # inputs that may share a scale
STRIP = 16  # rows that lie side by side (weights.h)
LEVELS = np.array([-127, -92, -69, -51, -36, -23, -12, -1, 9, 19, 30, 42, 55, 70, 88, 111], np.int8)  # weights.h
LARGEST = 1e30  # weights that can be rounded: products by levels stay finite
_STRETCHES = (0.75, 0.83, 0.91, 0.99, 1.07)  # scales that are tried, of the one that reaches the largest number
_REACH = 176  # more than 127 / 0.75, where the largest number may come to lie
_NEAREST = np.abs(LEVELS[:, None].astype(np.int32) - np.arange(-_REACH, _REACH + 2)).argmin(axis=0).astype(np.uint8)
_NEAREST_LEVEL = LEVELS.astype(np.float32)[_NEAREST]
_NUMBERS = 1 << 16  # rounded at once: they stay in the processor's second cache


def fits(inputs: int, group: int) -> bool:
    """Whether rows of so many inputs can be packed; the others are kept as they are."""
    return inputs > 0 and inputs % group == 0


def quantize(weights: np.ndarray, bits: int, group: int) -> Matrix:
    """Round `weights` (outputs, inputs), float32 of at most `LARGEST`, to 8 or 4 bits: a Matrix that the library reads.

    Scales of 8 bits reach the largest number of their group; those of 4 bits are the best of ten by the squared error.
    """
    outputs, inputs = weights.shape
    if bits not in (8, 4) or group not in GROUPS or not fits(inputs, group):
        raise ValueError(f"{outputs}x{inputs} weights cannot have {bits} bits in groups of {group}")
    array = np.empty((outputs, inputs if bits == 8 else inputs // 2), np.int8 if bits == 8 else np.uint8)
    scales = np.empty((outputs, inputs // group), BFLOAT16)
    rows = max(1, _NUMBERS // inputs // STRIP) * STRIP
    for start in range(0, outputs, rows):
        now = slice(start, start + rows)
        groups = weights[now].reshape(-1, group)
        levels, found = _rounded8(groups) if bits == 8 else _rounded4(groups)
        scales[now] = in_strips(found.reshape(-1, inputs // group))
        array[now] = pack(levels.reshape(-1, inputs))
    return Matrix(array, scales, group)


def dequantize(matrix: Matrix) -> np.ndarray:
    """What the weights of int8 or int4 stand for: (outputs, inputs) float32."""
    assert matrix.scales is not None
    levels = unpack(matrix.array)
    if matrix.array.dtype == np.uint8:
        levels = LEVELS[levels]
    groups = levels.astype(np.float32).reshape(*matrix.scales.shape, matrix.group)
    with np.errstate(over="ignore", invalid="ignore"):  # of a damaged file: what is infinite is found by who looks
        groups *= in_rows(matrix.scales.view(BFLOAT16)).astype(np.float32)[..., None]
    return groups.reshape(matrix.shape)


def pack(numbers: np.ndarray) -> np.ndarray:
    """Levels (rows, inputs) int8 -> the same; or numbers 0 to 15, uint8 -> (rows, inputs / 2).

    Four bytes of a row are an item of `in_strips`. Of eight numbers, byte k of four has number k in its low bits and
    k + 4 in its high ones.
    """
    if numbers.dtype == np.uint8:
        eights = numbers.reshape(len(numbers), -1, 2, 4)
        numbers = (eights[:, :, 0] | eights[:, :, 1] << 4).reshape(len(numbers), -1)
    return in_strips(np.ascontiguousarray(numbers).view(np.uint32)).view(numbers.dtype)


def unpack(packed: np.ndarray) -> np.ndarray:
    """The way back: (rows, inputs) int8, or (rows, inputs / 2) uint8 -> (rows, inputs)."""
    rows = in_rows(np.ascontiguousarray(packed).view(np.uint32)).view(packed.dtype)
    if packed.dtype == np.int8:
        return rows
    fours = rows.reshape(len(rows), -1, 1, 4)
    return np.concatenate((fours & 15, fours >> 4), axis=2).reshape(len(rows), -1)


def in_strips(rows: np.ndarray) -> np.ndarray:
    """The items of (rows, N) as the library reads them: in strips of 16 rows, and one of what is left.

    In a strip comes one item of each row, then the next of each. The result has the same shape, but its rows are none.
    """
    result = np.empty_like(rows)
    for strip, now in _strips(len(rows)):
        result[now].reshape(strip[0], -1, strip[1])[:] = rows[now].reshape(*strip, -1).swapaxes(1, 2)
    return result


def in_rows(strips: np.ndarray) -> np.ndarray:
    """The way back."""
    result = np.empty_like(strips)
    for strip, now in _strips(len(strips)):
        result[now].reshape(*strip, -1)[:] = strips[now].reshape(strip[0], -1, strip[1]).swapaxes(1, 2)
    return result


def _strips(rows: int) -> list[tuple[tuple[int, int], slice]]:
    """How many strips of how many rows, and where."""
    whole = rows // STRIP * STRIP
    parts = [((whole // STRIP, STRIP), slice(whole)), ((1, rows - whole), slice(whole, rows))]
    return [part for part in parts if all(part[0])]


def _rounded8(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups (N, G) -> levels (N, G) int8, scales (N,)."""
    scales = _as_scale(np.abs(groups).max(axis=1) / 127)
    return np.clip(np.rint(groups / scales.astype(np.float32)[:, None]), -127, 127).astype(np.int8), scales


def _rounded4(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups (N, G) -> numbers of levels (N, G) uint8, scales (N,).

    The largest number of a group comes to lie at one end of the levels or at the other, or a little beyond: scales may
    be negative.
    """
    largest = groups[np.arange(len(groups)), np.abs(groups).argmax(axis=1)]
    best, scales = np.full(len(groups), np.inf), np.ones(len(groups), BFLOAT16)
    for end in (LEVELS[0], LEVELS[-1]):
        for stretch in _STRETCHES:
            tried = _as_scale(largest * np.float32(stretch / end))
            levels = _NEAREST_LEVEL.take(_places(groups, tried))
            scale = tried.astype(np.float64)  # the squared error, but for the weights' own squares
            errors = scale * (scale * np.einsum("ng,ng->n", levels, levels) - 2 * np.einsum("ng,ng->n", levels, groups))
            better = errors < best
            best[better], scales[better] = errors[better], tried[better]
    return _NEAREST.take(_places(groups, scales)), scales


def _places(groups: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Where the weights, in scales, are in the tables of what is nearest."""
    places = groups * (1 / scales.astype(np.float32))[:, None]
    places += _REACH + 0.5  # what is cut off next is then rounded
    return places.astype(np.uint16)


def _as_scale(scales: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, with a scale for groups of zeros, too, and for those that vanish beside the least number."""
    rounded = scales.astype(np.float32).astype(BFLOAT16)
    rounded[np.abs(rounded.astype(np.float32)) < 1e-30] = 1e-30
    return rounded
