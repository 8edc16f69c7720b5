"""The arithmetic of memory: by hand for the large models, against resident memory for small ones."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spark13b.config import Preset, load_preset
from spark13b.train.answering_memory import answering_memory
from spark13b.train.memory import kept_between_layers, training_memory
from spark13b.train.parts import attention_backend, part_of, stored_parameters

MEASURE = Path(__file__).parents[2] / "benchmarks" / "memory.py"
LAYER = 4 * (5120 * 5120 + 5120) + 2 * (14336 * 5120 + 14336) + (5120 * 14336 + 5120) + 4 * 5120
ROWS = 40 * LAYER + 2 * 5120  # all but the embedding
EMBEDDING = 60000 * 5120


def preset(name: str, **changes: Any) -> Preset:
    return load_preset(name, options={key.replace("__", "."): value for key, value in changes.items()})


def test_of_the_sft_preset_a_device_holds_a_quarter_of_the_weights_and_an_eighth_of_the_optimizer():
    memory = training_memory(preset("800T-A2-sft"), 32768)
    # norms and the biases of out_proj and fc2 are whole on every device
    whole = 40 * 6 * 5120 + 2 * 5120
    weights = 2 * (ROWS - whole) // 4 + 4 * EMBEDDING // 4 + (40 * 4 * 4 + 40 * 2 * 2 + 2 * 4) * 5120
    assert memory.weights == weights
    assert memory.gradients == weights
    assert memory.optimizer == 8 * ((ROWS - whole) // 8 + EMBEDDING // 8 + whole // 2)


def test_masters_take_four_bytes_for_every_parameter_of_16_bits():
    plain = training_memory(preset("800T-A2-sft"), 32768)
    mastered = training_memory(preset("800T-A2-sft", optimizer__master_weights=True), 32768)
    sixteen = [one for one in stored_parameters(preset("800T-A2-sft")) if one.type == "bfloat16"]
    assert mastered.optimizer - plain.optimizer == 4 * sum(one.own for one in sixteen)
    assert mastered.weights == plain.weights


def test_without_optimizer_sharding_adams_state_is_eight_bytes_a_parameter():
    memory = training_memory(preset("800T-A2-sft", parallel__optimizer_shard=False), 32768)
    assert memory.optimizer == 8 * sum(one.size for one in stored_parameters(preset("800T-A2-sft")))


def test_lora_trains_its_adapters_alone():
    memory = training_memory(preset("800T-A2-lora"), 32768)
    adapters = 40 * 3 * (4 * (5120 + 5120) + 3 * (5120 + 14336))
    held = [one for one in stored_parameters(preset("800T-A2-lora")) if one.trained]
    assert all(one.type == "float32" and ".mindpet_delta_lora_" in one.name for one in held)
    assert adapters / 2 < sum(one.size for one in held) < adapters
    assert memory.gradients == 4 * sum(one.size for one in held)
    assert memory.weights > 13e9


def test_accumulated_gradients_are_float32_beside_those_of_a_batch():
    once = training_memory(preset("800T-A2-sft"), 32768)
    four = training_memory(preset("800T-A2-sft", train__accumulation_steps=4), 32768)
    assert four.gradients - once.gradients == 4 * sum(one.size for one in stored_parameters(preset("800T-A2-sft")))


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, 32768),
        ({"train__recompute_slice_activations": True}, 32768 // 4),
        ({"parallel__sequence_parallel": True}, 32768 // 4),
    ],
)
def test_a_recomputed_layer_keeps_its_input_cut_when_activations_are_sliced(changes, rows):
    part = part_of(preset("800T-A2-sft", **changes), 32768)
    assert kept_between_layers(part) == 2 * rows * 5120


def test_activations_grow_with_the_rows_and_recomputation_saves_most_of_them():
    short, long = (training_memory(preset("800T-A2-sft"), tokens) for tokens in (16384, 32768))
    for name in ("activations_with_recompute", "activations_without_recompute"):
        assert getattr(short, name) < getattr(long, name) < 2.1 * getattr(short, name)
    assert long.activations_with_recompute < long.activations_without_recompute / 5


def test_the_cache_holds_a_window_of_keys_and_values_of_this_devices_heads():
    assert answering_memory(preset("800T-A2-infer")).cache == 2 * 40 * 8192 * 5120 * 2
    assert answering_memory(preset("800-infer")).cache == 2 * 40 * 8192 * 2560 * 2
    assert answering_memory(preset("800T-A2-infer"), context=1024).cache == 2 * 40 * 1024 * 5120 * 2


def test_several_answers_have_a_cache_each_beside_the_one_where_prompts_are_read():
    one, eight = (answering_memory(preset("800T-A2-infer"), seats) for seats in (1, 8))
    assert eight.cache == 9 * one.cache
    assert eight.weights == one.weights


def test_reading_a_long_prompt_needs_no_more_than_one_part_over_the_window():
    part = 40 * 512 * (8192 + 512) * (2 + 2 + 12)  # scores, as they pass through the softmax
    long = answering_memory(preset("800T-A2-infer")).activations
    assert part < long < 1.4 * part
    assert answering_memory(preset("800T-A2-infer"), context=512).activations < long / 5


def test_the_total_is_no_more_than_all_parts_and_no_less_than_any():
    for name in ("800T-A2-sft", "800-lora", "cpu-tiny-sft"):
        memory = training_memory(preset(name), 512)
        parts = [memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.runtime]
        assert max(parts) <= memory.total <= sum(parts) + 4 * EMBEDDING


def test_the_attention_backend_is_that_of_the_machine_that_the_preset_is_for():
    assert attention_backend(preset("800T-A2-sft"), 10, 32768) == "ascend"
    assert attention_backend(preset("800-sft"), 5, 32768) == "acctransformer"
    assert attention_backend(preset("cpu-tiny-sft"), 4, 512) == "plain"
    assert attention_backend(preset("cpu-tiny-sft"), 4, 32768) == "blocked"


@pytest.mark.parametrize("shape", ["wide weights", "many tokens", "many tokens, native"])
def test_a_real_training_run_takes_what_was_planned_within_20_percent(shape, tmp_path):
    result = subprocess.run(
        [sys.executable, MEASURE, "--shape", shape, "--steps", "2", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert row["measured"] > 1e9  # more than the process alone
    assert math.isclose(row["planned"], row["measured"], rel_tol=0.2), row
