"""The order of the rows: every epoch whole, and the same from wherever a run goes on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark13b.train import order as module
from spark13b.train.order import row_order, steps_of_order


def joined(*arguments: object) -> list[int]:
    return [int(row) for part in row_order(*arguments) for row in part]  # type: ignore[arg-type]


@given(st.integers(1, 40), st.integers(0, 120), st.integers(0, 120), st.booleans())
def test_a_run_that_goes_on_sees_the_rows_it_would_have_seen(rows, first, count, shuffle):
    whole = joined(rows, 0, first + count, 7, shuffle)
    assert joined(rows, first, count, 7, shuffle) == whole[first:]


@given(st.integers(1, 40), st.integers(1, 4))
def test_every_epoch_has_each_row_once_in_an_order_of_its_own(rows, epochs):
    found = joined(rows, 0, rows * epochs, 3, True)
    for epoch in range(epochs):
        assert sorted(found[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    if rows > 20 and epochs > 1:
        assert found[:rows] != found[rows : 2 * rows]


def test_without_shuffling_the_file_s_order_repeats():
    assert joined(3, 2, 5, 0, False) == [2, 0, 1, 2, 0]


def test_another_seed_is_another_order():
    assert joined(50, 0, 50, 1, True) != joined(50, 0, 50, 2, True)


@pytest.mark.parametrize("part", [1, 7, 1000])
def test_steps_come_in_whole_and_none_is_lost_where_parts_meet(monkeypatch, part):
    monkeypatch.setattr(module, "_PART", part)
    parts = list(steps_of_order(10, 8, 7, 4, 0, True))
    assert all(rows.shape[1] == 4 for rows in parts)
    assert np.concatenate(parts).ravel().tolist() == joined(10, 8, 28, 0, True)


def test_the_rows_go_on_where_they_were_when_a_step_takes_another_number_of_them():
    two, three = (steps_of_order(10, *steps, 0, True) for steps in ((0, 3, 2), (6, 4, 3)))
    seen = [int(row) for steps in (*two, *three) for row in steps.ravel()]
    assert seen == joined(10, 0, 18, 0, True)
