"""`info`, `verify` and `diff`: what they find and what they say."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from spark13b.ckpt import TensorInfo, expected_shapes, open_checkpoint, write_checkpoint
from spark13b.ckpt.differences import differences, largest_difference
from spark13b.ckpt.inspecting import families, fitting_presets, guessed_config, not_finite, problems
from spark13b.config import SparkConfig, load_preset

LAYER = "transformer.transformer.layers.1."


def test_layers_of_the_same_shape_are_one_line() -> None:
    infos = [TensorInfo(name, shape, np.dtype(np.float32)) for name, shape in expected_shapes(SparkConfig()).items()]
    rows = families(infos)
    assert len(rows) == 21 and sum(row.count for row in rows) == 723
    assert ("transformer.transformer.layers.{0..39}.mlp.fc2.weight", 40) in [(row.name, row.count) for row in rows]
    rows = families([TensorInfo(f"layers.{n}.w", (2,), np.dtype(np.float32)) for n in (0, 2, 3)])
    assert rows[0].name == "layers.{0,2,3}.w"


def test_the_presets_that_fit_are_found() -> None:
    fitting = fitting_presets(expected_shapes(load_preset("800T-A2-sft").model))
    assert {"800T-A2-sft", "800T-A2-pretrain", "800-infer"} <= set(fitting)
    assert not [name for name in fitting if name.startswith("cpu-tiny")]
    assert fitting_presets({"a": (1,)}) == []


def test_a_model_s_size_is_told_by_its_shapes(config: SparkConfig) -> None:
    guessed = guessed_config(expected_shapes(config))
    assert guessed is not None and expected_shapes(guessed) == expected_shapes(config)
    assert guessed_config({"a": (1,)}) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_nan_and_inf_are_counted(dtype: type) -> None:
    numbers = np.ones(1000).astype(dtype)
    assert not_finite(numbers) == 0
    numbers[[3, 500]] = np.nan
    numbers[999] = -np.inf
    assert not_finite(numbers) == 3


def test_a_sound_checkpoint_has_no_problems(weights: Path, config: SparkConfig) -> None:
    with open_checkpoint(weights) as checkpoint:
        assert list(problems(checkpoint, config)) == list(problems(checkpoint, None)) == []


def test_every_problem_is_reported_not_only_the_first(tmp_path: Path, golden_weights: dict) -> None:
    tensors = {name: array.copy() for name, array in golden_weights.items()}
    tensors[f"{LAYER}mlp.fc0.weight"] += 1  # unlike any other
    tensors[f"{LAYER}mlp.fc2.bias"][7] = np.nan
    del tensors[f"{LAYER}attention.q_proj.bias"]
    write_checkpoint(tmp_path / "x.ckpt", tensors)
    data = bytearray((tmp_path / "x.ckpt").read_bytes())
    data[data.index(tensors[f"{LAYER}mlp.fc0.weight"].tobytes()) + 5] ^= 4
    (tmp_path / "x.ckpt").write_bytes(data)
    with open_checkpoint(tmp_path / "x.ckpt") as checkpoint:
        found = [problem.what for problem in problems(checkpoint, None)]
    assert len(found) == 3
    assert f"1 missing:\n    {LAYER}attention.q_proj.bias" in found[0]
    assert f"tensor '{LAYER}mlp.fc0.weight' does not match its checksum" in "\n".join(found)
    assert f"tensor '{LAYER}mlp.fc2.bias' holds 1 numbers that are nan or infinite" in found


def test_the_largest_differences_are_told_per_tensor(tmp_path: Path, golden_weights: dict) -> None:
    changed = {name: array.copy() for name, array in golden_weights.items()}
    name = f"{LAYER}mlp.fc0.weight"
    changed[name][3, 4] += 0.5
    changed["new"] = changed.pop(f"{LAYER}mlp.fc0.bias")
    changed[f"{LAYER}mlp.fc2.bias"] = changed[f"{LAYER}mlp.fc2.bias"][:-1]
    write_checkpoint(tmp_path / "a.ckpt", golden_weights)
    write_checkpoint(tmp_path / "b.safetensors", changed, "safetensors")
    with open_checkpoint(tmp_path / "a.ckpt") as a, open_checkpoint(tmp_path / "b.safetensors") as b:
        assert list(differences(a, a)) == []
        found = {difference.name: difference for difference in differences(a, b)}
    assert set(found) == {f"{LAYER}mlp.fc0.bias", "new", f"{LAYER}mlp.fc2.bias", name}
    assert found["new"].how == "only in the second" and found[f"{LAYER}mlp.fc2.bias"].how == "shapes [64] and [63]"
    expected = 0.5 / max(abs(golden_weights[name][3, 4]), abs(changed[name][3, 4]))
    assert found[name].absolute == pytest.approx(0.5, rel=1e-6) and found[name].relative == pytest.approx(expected)


def test_values_are_compared_across_number_formats() -> None:
    numbers = np.array([1.0, -2.0, np.nan, np.inf, 0.0], np.float32)
    assert largest_difference(numbers, numbers.astype(ml_dtypes.bfloat16)) == (0, 0)
    assert largest_difference(numbers, np.array([1.0, -2.0, 0.0, np.inf, -0.0], np.float32))[0] == np.inf
    absolute, relative = largest_difference(np.array([1.001], np.float32), np.array([1], ml_dtypes.bfloat16))
    assert absolute == pytest.approx(1e-3, rel=1e-3) and relative == pytest.approx(1e-3, rel=2e-3)
