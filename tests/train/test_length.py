"""The length of a run in steps, whichever way it is given."""

from __future__ import annotations

import pytest

from spark13b.config import load_preset
from spark13b.train.length import rows_a_step, run_steps

ROWS, TOKENS = 40, 32


def preset(length: str, *more: str):
    return load_preset("cpu-tiny-sft", assignments=["train.batch_size=3", f"train.{length}", *more])


@pytest.mark.parametrize(
    ("length", "steps"),
    [("steps=7", 7), ("epochs=1", 14), ("epochs=3", 40), ("tokens=1", 1), ("tokens=96", 1), ("tokens=97", 2)],
)
def test_a_length_in_steps_epochs_or_tokens_is_rounded_up_to_whole_steps(length, steps):
    assert run_steps(preset(length), ROWS, TOKENS) == steps


@pytest.mark.parametrize("length", ["steps=20", "epochs=2", "tokens=2000"])
def test_what_is_left_does_not_depend_on_where_a_run_was_stopped(length):
    whole = run_steps(preset(length), ROWS, TOKENS)
    for step in range(whole + 1):
        assert run_steps(preset(length), ROWS, TOKENS, step, 3 * step) == whole


def test_what_is_left_of_the_epochs_is_done_in_steps_of_another_size():
    assert run_steps(preset("epochs=2", "train.batch_size=8"), ROWS, TOKENS, step=5, rows_done=15) == 5 + 9  # 65 / 8
    assert run_steps(preset("epochs=2"), ROWS, TOKENS, step=10, rows_done=80) == 10


def test_a_step_takes_the_rows_of_all_groups_and_accumulated_batches():
    more = ("train.accumulation_steps=4", "parallel.data_parallel=2", "machine.devices=2")
    assert rows_a_step(preset("steps=9", *more)) == 3 * 4 * 2
