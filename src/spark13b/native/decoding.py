"""Prompts and steps of decoding: a text's tokens go through all layers in one call."""

from __future__ import annotations

import numpy as np

from spark13b.errors import JobError
from spark13b.native.arrays import check_array
from spark13b.native.library import Library
from spark13b.native.weights import Weights


def decode_step(
    library: Library,
    weights: Weights,
    slots: int,
    ids: np.ndarray,
    positions: np.ndarray,
    rings: np.ndarray,
    *,
    threads: int,
    halves: bool = False,
    level: int | None = None,
    whole_numbers: bool = True,
) -> np.ndarray:
    """A token of each text, `ids` (N,) at `positions` (N,), both int32 -> logits (N, V) float32 after each.

    Several may be of one text, one position after the other below `slots`: each sees those before it.

    `rings` (N, layers, 2): where the keys and values of a text lie, (H*slots, D) each, see `addresses_of`: float32,
    with `halves` bfloat16; the token's own are written there. `level`: of LEVELS; the best by default. `whole_numbers`:
    int8 and int4 weights are multiplied by whole numbers where the processor can. Raises
    ValueError for numbers out of range, JobError when memory ends.
    """
    count = len(ids)
    level = library.level if level is None else level
    check_array(ids, (count,), np.int32, "ids")
    check_array(positions, (count,), np.int32, "positions")
    check_array(rings, (count, weights.layers, 2), np.uintp, "rings")
    if count < 1 or slots < 1 or threads < 1 or not 0 <= level <= library.best:
        raise ValueError(f"{count} texts, {slots} slots, {threads} threads, level {level}: one is out of range")
    if ids.min() < 0 or ids.max() >= weights.vocabulary:
        raise ValueError(f"ids go from {ids.min()} to {ids.max()}, the vocabulary is {weights.vocabulary}")
    if positions.min() < 0 or positions.max() >= weights.positions:
        raise ValueError(f"positions go from {positions.min()} to {positions.max()}, of {weights.positions}")
    goes_on = np.zeros(count, bool)  # with the text of the one before
    goes_on[1:] = (rings[1:] == rings[:-1]).all(axis=(1, 2)) & (positions[1:] == positions[:-1] + 1)
    goes_on &= positions < slots
    texts = rings[~goes_on]
    if not rings.all() or np.unique(texts).size < texts.size:
        raise ValueError("rings are missing, or the same for two texts")
    logits = np.empty((count, weights.vocabulary), np.float32)
    status = library.calls.spark_decode_step(
        *weights.pointers(),
        count,
        slots,
        *(array.ctypes.data for array in (ids, positions, rings)),
        halves,
        logits.ctypes.data,
        threads,
        level,
        whole_numbers,
    )
    if status == 2:
        raise JobError("out of memory in a decode step", fix="use a smaller batch")
    if status != 0:
        raise ValueError("the native library refused the step")
    return logits


def prefill(
    library: Library,
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
    whole_numbers: bool = True,
) -> np.ndarray:
    """Read `ids` (T,) int32 at positions `start` on -> logits (wanted, V) float32 of the last `wanted` of them.

    `rings` (layers, 2): where the text's keys and values lie, as of `decode_step`, which hold what is before
    `start` and get what is read. A token sees `window` of them, itself among these. With `rounds` products are of
    bfloat16, with float32 sums. `whole_numbers`: as of `decode_step`; products of whole numbers are not of bfloat16.
    Raises ValueError for numbers out of range, JobError when memory ends.
    """
    level = library.level if level is None else level
    check_array(ids, (len(ids),), np.int32, "ids")
    check_array(rings, (weights.layers, 2), np.uintp, "rings")
    if not 0 <= start <= weights.positions - len(ids) or len(ids) < 1 or not 0 <= wanted <= len(ids):
        raise ValueError(f"{len(ids)} tokens at {start}, {wanted} wanted: one is out of range")
    if slots < 1 or window < 1 or threads < 1 or not 0 <= level <= library.best:
        raise ValueError(f"{slots} slots, window {window}, {threads} threads, level {level}: one is out of range")
    if ids.min() < 0 or ids.max() >= weights.vocabulary:
        raise ValueError(f"ids go from {ids.min()} to {ids.max()}, the vocabulary is {weights.vocabulary}")
    if not rings.all() or np.unique(rings).size < rings.size:
        raise ValueError("rings are missing, or the same twice")
    _ = library.onednn  # is looked for now
    logits = np.empty((wanted, weights.vocabulary), np.float32)
    status = library.calls.spark_prefill(
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
        whole_numbers,
    )
    if status == 2:
        raise JobError("out of memory while a prompt was read", fix="read it in smaller parts")
    if status == 3:
        raise JobError("a product of matrices failed", fix="SPARK13B_NATIVE=0 computes by MindSpore")
    if status != 0:
        raise ValueError("the native library refused to read")
    return logits
