"""How long a run is: `train.steps`, `train.epochs` or `train.tokens`, in steps."""

from __future__ import annotations

import math

from spark13b.config.preset import Preset


def rows_a_step(preset: Preset) -> int:
    """Rows that one step takes, over all data-parallel groups and accumulated batches."""
    return preset.train.batch_size * preset.train.accumulation_steps * preset.parallel.data_parallel


def run_steps(preset: Preset, rows: int | None, tokens: int, step: int = 0, rows_done: int = 0) -> int:
    """The steps of the whole run on `rows` rows of `tokens` tokens, of which `step` are done with `rows_done` rows.

    Only a length in epochs needs `rows`.

    A length in epochs or tokens is what is left of it in steps of the present size, so that a run may go on with
    another one. The last step is a whole one: it may go some rows beyond the length.
    """
    length = preset.train
    if length.steps is not None:
        return length.steps
    if length.tokens is not None:
        wanted = math.ceil(length.tokens / tokens)
    else:
        assert rows is not None and length.epochs is not None
        wanted = length.epochs * rows
    return step + max(0, math.ceil((wanted - rows_done) / rows_a_step(preset)))
