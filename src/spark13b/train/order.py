"""Which rows a step sees: a function of seed and position alone, so that a run can go on anywhere.

The position is the number of rows that were seen, whatever number of them a step took.
"""

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


def steps_of_order(
    rows: int, position: int, steps: int, step_rows: int, seed: int, shuffle: bool
) -> Iterator[np.ndarray]:
    """Yield the row numbers of `steps` steps, from `position` rows on: long stretches (steps, step_rows)."""
    waiting = np.zeros(0, np.int64)
    for part in row_order(rows, position, steps * step_rows, seed, shuffle):
        waiting = np.concatenate((waiting, part))
        whole = len(waiting) // step_rows * step_rows
        if whole >= _PART:
            yield waiting[:whole].reshape(-1, step_rows)
            waiting = waiting[whole:]
    if len(waiting):
        yield waiting.reshape(-1, step_rows)
