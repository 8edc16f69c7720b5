"""Which rows a step sees: a function of seed and position alone, so that a run can go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_PART = 1 << 20  # rows of the order that are made at once


def row_order(rows: int, first: int, count: int, seed: int, shuffle: bool) -> Iterator[np.ndarray]:
    """Yield the numbers of the rows at positions first..first+count of an endless run, in parts.

    Every epoch sees each of `rows` rows once; with `shuffle` in an order of its own, made from seed and epoch.
    """
    position, end = first, first + count
    while position < end:
        epoch, offset = divmod(position, rows)
        if shuffle:
            epoch_order = np.random.default_rng([seed, epoch]).permutation(rows)
        else:
            epoch_order = np.arange(rows)
        while offset < rows and position < end:
            size = min(_PART, rows - offset, end - position)
            yield epoch_order[offset : offset + size]
            offset, position = offset + size, position + size


def batches_of_order(
    rows: int, first_step: int, steps: int, batch: int, seed: int, shuffle: bool
) -> Iterator[np.ndarray]:
    """Yield long stretches of `row_order` that are whole batches, for steps first_step..steps."""
    waiting = np.zeros(0, np.int64)
    for part in row_order(rows, first_step * batch, (steps - first_step) * batch, seed, shuffle):
        waiting = np.concatenate((waiting, part))
        whole = len(waiting) // batch * batch
        if whole >= _PART:
            yield waiting[:whole]
            waiting = waiting[whole:]
    if len(waiting):
        yield waiting
