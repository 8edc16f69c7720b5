"""Operations a token, counted by hand; and the peak that they are measured by."""

from __future__ import annotations

import pytest

from spark13b.config import load_preset
from spark13b.train.flops import flops_per_token, measured_peak, peak_flops
from spark13b.train.pace import Pace
from train.small_run import small_preset


def test_a_token_costs_6_operations_a_number_of_the_matrices_and_12_a_visible_key():
    layer = 4 * 32 * 32 + 3 * 32 * 32
    keys = (sum(range(1, 17)) + 16 * 16) / 32  # window 16 of 32 tokens
    assert flops_per_token(small_preset(), 32) == 6 * (layer + 8000 * 32) + 12 * 32 * keys
    all_before = small_preset(model__sparse_local_size=64)
    assert flops_per_token(all_before, 32) == 6 * (layer + 8000 * 32) + 12 * 32 * (33 / 2)


def test_the_13b_model_costs_80_gigaflops_a_token_without_attention_and_what_attention_adds():
    preset = load_preset("800T-A2-sft")
    parameters = 13_312_542_720
    keys = (8192 * 8193 / 2 + (32768 - 8192) * 8192) / 32768
    expected = 6 * parameters + 12 * 40 * 5120 * keys
    assert flops_per_token(preset, 32768) == pytest.approx(expected, rel=1e-3)  # biases and norms are no matrices


def test_the_peak_of_an_npu_is_the_preset_s_and_that_of_a_cpu_is_measured():
    assert peak_flops(load_preset("800T-A2-sft")) == 8 * 313e12
    assert peak_flops(load_preset("800-sft")) == 16 * 256e12
    assert 1e9 < peak_flops(small_preset()) < 1e15
    assert measured_peak("float32") == measured_peak("float32")  # once a process
    unknown = load_preset("800T-A2-sft", assignments=["machine.peak_tflops=null"])
    assert peak_flops(unknown) is None


def test_pace_leaves_out_the_step_in_which_mindspore_compiles():
    pace = Pace(100)
    assert (pace.now, pace.overall) == (None, 0.0)
    pace.add(60.0)
    assert (pace.now, pace.overall) == (None, 0.0)
    for _ in range(20):
        pace.add(1.0)
    for _ in range(20):
        pace.add(3.0)
    assert (pace.now, pace.overall) == (pytest.approx(100 / 3), pytest.approx(50))
