"""`spark13b lora` and what becomes of its adapters: answered with, measured, folded in, cut out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from spark13b.ckpt import expected_shapes, open_checkpoint, write_checkpoint
from train.small_run import small_preset, small_rows

QUESTION = "保持健康的三个提示。"


@dataclass(frozen=True)
class Made:
    """A base model of random weights, and a LoRA run on it."""

    folder: Path
    rows: Path

    @property
    def base(self) -> Path:
        return self.folder / "base.ckpt"

    @property
    def run(self) -> Path:
        return self.folder / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("lora")
    made = Made(folder, small_rows(folder, records=8))
    preset = small_preset(schedule__warmup_steps=0, schedule__lr=0.05, train__save_every=100)
    (made.folder / "small.yaml").write_text(preset.to_yaml(), encoding="utf-8")
    rng = np.random.default_rng(0)
    shapes = expected_shapes(preset.model)
    write_checkpoint(
        made.base, {name: rng.normal(size=shape, scale=0.2).astype(np.float32) for name, shape in shapes.items()}
    )
    command = [sys.executable, "-m", "spark13b"]
    command += [
        *("lora", "--preset", made.folder / "small.yaml", "--data", made.rows, "--load", made.base),
        *("--output", made.run, "--set", "lora.rank=2", "--set", "lora.alpha=8", "--json", "--eval-data", made.rows),
    ]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (made.folder / "result.json").write_text(result.stdout)
    return made


def test_a_base_with_adapters_measures_as_the_run_did(made, spark13b):
    result = json.loads((made.folder / "result.json").read_text())
    adapter = next(made.run.rglob("adapters.safetensors"))
    model = ("--load", made.base, "--adapter", adapter)
    found = json.loads(spark13b("eval", "--data", made.rows, *model, "--json").stdout)
    assert (result["steps"], result["evaluation"]["tokens"]) == (6, found["tokens"])
    assert found["loss"] == pytest.approx(result["evaluation"]["loss"], rel=1e-6)


def test_a_run_answers_with_its_base_and_adapters(made, spark13b):
    said = spark13b("infer", QUESTION, "--load", made.run, "--max-new-tokens", 4, "--json")
    assert json.loads(said.stdout)["new_tokens"] > 0
    assert "is not the base" not in said.stderr


def test_adapters_are_folded_into_their_base_in_its_own_number_format(made, tmp_path, spark13b):
    said = spark13b("ckpt", "merge-lora", made.base, made.run, tmp_path / "merged")
    assert "is not the base" not in said.stderr
    linear = "transformer.transformer.layers.0.mlp.fc2"
    with (
        open_checkpoint(tmp_path / "merged") as merged,
        open_checkpoint(made.base) as base,
        open_checkpoint(made.run) as adapters,
    ):
        assert merged.dtypes() == base.dtypes()
        a, b = (np.asarray(adapters[f"{linear}.mindpet_delta_lora_{one}"], np.float64) for one in "ab")
        expected = np.asarray(base[f"{linear}.weight"], np.float64) + b @ a * (8 / 2)
        np.testing.assert_allclose(np.asarray(merged[f"{linear}.weight"], np.float64), expected, atol=1e-5)


def test_adapters_are_cut_out_of_a_checkpoint_that_holds_everything(made, tmp_path, spark13b):
    with open_checkpoint(made.base) as base, open_checkpoint(made.run) as adapters:
        state = {f"adam_m.{name}": adapters[name] for name in adapters}
        write_checkpoint(tmp_path / "all.ckpt", {**base, **adapters, **state})
        wanted = {name: adapters[name].tobytes() for name in adapters}
    cut = ("ckpt", "extract-lora", tmp_path / "all.ckpt", tmp_path / "cut")
    assert "--alpha" in spark13b(*cut, code=2).stderr
    assert "adapters of rank 2, alpha 8" in spark13b(*cut, "--alpha", 8).stdout
    with open_checkpoint(tmp_path / "cut") as found:
        assert {name: found[name].tobytes() for name in found} == wanted
    merged = ("ckpt", "merge-lora", tmp_path / "all.ckpt", tmp_path / "all.ckpt", tmp_path / "m.ckpt", "--alpha", 8)
    spark13b(*merged, "--dtype", "bfloat16")
    with open_checkpoint(tmp_path / "m.ckpt") as found, open_checkpoint(made.base) as base:
        assert list(found) == list(base)


def test_what_is_missing_is_named_with_a_cure(made, tmp_path, spark13b):
    options = ("--preset", made.folder / "small.yaml", "--data", made.rows)
    assert "add --load BASE" in spark13b("lora", *options, "--output", tmp_path / "run", code=2).stderr
    nothing = ("--load", tmp_path / "nothing", "--output", tmp_path / "run")
    assert "there is no such checkpoint" in spark13b("lora", *options, *nothing, code=2).stderr
    moved = Made(tmp_path / "moved", made.rows)
    shutil.copytree(made.run, moved.run)
    made.base.rename(moved.base)
    try:
        said = spark13b("infer", QUESTION, "--load", moved.run, code=2).stderr
    finally:
        moved.base.rename(made.base)
    assert str(made.base) in said
    assert f"--load BASE --adapter {moved.run}" in said
