"""Loss scaling by the numbers of shared/SPEC.md, section 4."""

from __future__ import annotations

from spark13b.config import TrainConfig
from spark13b.train.loss_scale import LossScale


def test_a_dynamic_scale_begins_at_2_to_the_32_halves_at_overflow_and_doubles_after_1000_good_steps():
    scale = LossScale.of(TrainConfig(loss_scale="dynamic"))
    assert scale.value == 2.0**32
    scale.update(False)
    assert scale.value == 2.0**31
    for _ in range(999):
        scale.update(True)
    assert scale.value == 2.0**31
    scale.update(True)
    assert scale.value == 2.0**32


def test_an_overflow_begins_the_count_of_good_steps_anew():
    scale = LossScale.of(TrainConfig(loss_scale="dynamic", loss_scale_window=3, loss_scale_value=8.0))
    for finite in (True, True, False, True, True):
        scale.update(finite)
    assert scale.value == 4.0
    scale.update(True)
    assert scale.value == 8.0


def test_a_dynamic_scale_never_falls_below_1():
    scale = LossScale.of(TrainConfig(loss_scale="dynamic", loss_scale_value=2.0))
    for _ in range(5):
        scale.update(False)
    assert scale.value == 1.0


def test_fixed_and_no_scale_stay_as_they_are():
    fixed, none = LossScale.of(TrainConfig(loss_scale="fixed", loss_scale_value=64.0)), LossScale.of(TrainConfig())
    for scale in (fixed, none):
        scale.update(False)
        scale.update(True)
    assert (fixed.value, none.value) == (64.0, 1.0)
