"""The learning rate step by step (shared/SPEC.md, sections 4 and 9)."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark13b.config.sections import ScheduleConfig
from spark13b.train.schedule import learning_rate


def rates(run_steps: int, last: int | None = None, **values: Any) -> list[float]:
    schedule = ScheduleConfig(**values)
    return [learning_rate(schedule, step, run_steps) for step in range((last or run_steps) + 1)]


def test_warm_up_is_linear_from_zero_and_reaches_lr_after_its_steps() -> None:
    found = rates(10, kind="constant", lr=8e-4, warmup_steps=4)
    assert found[:5] == pytest.approx([0, 2e-4, 4e-4, 6e-4, 8e-4])


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    for kind in ("constant", "linear", "cosine"):
        assert rates(10, kind=kind, lr=8e-4)[0] == pytest.approx(8e-4)


def test_constant_stays() -> None:
    assert set(rates(10, last=50, kind="constant", lr=8e-4)) == {8e-4}


def test_linear_goes_down_evenly_to_the_end_rate_and_stays_there() -> None:
    found = rates(4, last=6, kind="linear", lr=9e-4, lr_end=1e-4)
    assert found == pytest.approx([9e-4, 7e-4, 5e-4, 3e-4, 1e-4, 1e-4, 1e-4])


def test_cosine_goes_down_half_a_wave_to_the_end_rate_and_stays_there() -> None:
    found = rates(4, last=6, kind="cosine", lr=9e-4, lr_end=1e-4)
    middle = [1e-4 + 8e-4 * (1 + math.cos(math.pi * part)) / 2 for part in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx([*middle, 1e-4, 1e-4])
    assert found[2] == pytest.approx(5e-4)


def test_the_wave_begins_after_warm_up() -> None:
    found = rates(6, kind="cosine", lr=9e-4, lr_end=1e-4, warmup_steps=2)
    assert found == pytest.approx([0, 4.5e-4, *rates(4, kind="cosine", lr=9e-4, lr_end=1e-4)])


def test_total_steps_count_and_not_the_steps_of_this_run() -> None:
    values = {"kind": "cosine", "lr": 9e-4, "lr_end": 1e-4}
    assert rates(3, last=10, total_steps=10, **values) == pytest.approx(rates(10, **values))


def test_the_originals_pretraining_schedule_has_its_landmarks() -> None:
    """3e-4 to 3e-5, warm-up 1020 of 300000 (section 9)."""
    schedule = ScheduleConfig(kind="cosine", lr=3e-4, lr_end=3e-5, warmup_steps=1020, total_steps=300_000)
    landmarks = {0: 0, 510: 1.5e-4, 1020: 3e-4, 1020 + 298_980 // 2: 1.65e-4, 300_000: 3e-5, 400_000: 3e-5}
    for step, rate in landmarks.items():
        assert learning_rate(schedule, step, 1) == pytest.approx(rate, abs=1e-12)


def test_a_run_that_is_shorter_than_its_warm_up_keeps_warming_up() -> None:
    assert rates(2, last=3, kind="cosine", lr=1e-3, warmup_steps=10) == pytest.approx([0, 1e-4, 2e-4, 3e-4])


@given(
    kind=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 50),
    total=st.integers(51, 200),
    step=st.integers(0, 300),
)
def test_the_rate_never_leaves_its_bounds_and_never_rises_after_warm_up(
    kind: Any, warmup: int, total: int, step: int
) -> None:
    schedule = ScheduleConfig(kind=kind, lr=1e-3, lr_end=1e-5, warmup_steps=warmup, total_steps=total)
    now, next_ = learning_rate(schedule, step, 1), learning_rate(schedule, step + 1, 1)
    assert 0 <= now <= 1e-3
    if step < warmup:
        assert now < next_
    else:
        assert 1e-5 - 1e-18 <= next_ <= now
