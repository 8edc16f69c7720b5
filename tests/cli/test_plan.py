"""`--dry-run` as a user meets it: a plan on stdout, MindSpore not even loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infer.small_run import write_small_run
from spark13b.ckpt import open_checkpoint
from spark13b.ckpt.adapters import ADAPTERS, card_of, write_adapters
from spark13b.ckpt.quantizing import Wanted, quantize_checkpoint
from spark13b.cli.main import run
from spark13b.config import load_preset
from spark13b.config.sections import LoraConfig
from spark13b.model import native_choice
from spark13b.model.names import adapter_shapes
from spark13b.native.library import Found, Library
from spark13b.run_folder import weights_of

PROGRAM = """
import sys
from spark13b.cli.main import run
status = run(sys.argv[1:])
print("mindspore" in sys.modules, status, file=sys.stderr)
"""


def dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments, "--dry-run"]
    return subprocess.run(command, capture_output=True, text=True)


def plan_of(*arguments: str) -> dict[str, Any]:
    result = dry_run(*arguments, "--json")
    assert result.stderr == "False 0\n", result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def test_the_plan_of_a_13b_preset_needs_no_mindspore_and_names_all_parts():
    result = dry_run("train", "--preset", "800T-A2-sft")
    assert result.stderr == "False 0\n"
    for part in ("weights", "gradients", "optimizer", "activations, recomputed", "activations, kept", "limit"):
        assert f"  {part}" in result.stdout
    assert "depends on the rows" in result.stdout
    assert "x AllReduce over model" in result.stdout


def test_json_has_bytes_collectives_and_the_limit():
    plan = plan_of("train", "--preset", "800-sft")
    assert plan["memory"]["total"] < plan["memory_limit"] == 31 * 2**30
    assert {"what", "kind", "group", "count", "bytes"} == plan["collectives"][0].keys()
    assert plan["tokens_per_step"] == 65536


def test_train_and_infer_show_the_same_plan_of_an_infer_preset():
    plan = plan_of("infer", "--preset", "800T-A2-infer")
    assert plan == plan_of("train", "--preset", "800T-A2-infer")
    assert plan["memory"]["cache"] == 2 * 40 * 8192 * 5120 * 2


def test_infer_plans_the_answers_of_a_training_preset_too():
    plan = plan_of("infer", "--preset", "800-sft")
    assert (plan["task"], plan["steps"], plan["memory"]["optimizer"]) == ("infer", None, 0)


@pytest.mark.parametrize("command", ["train", "lora"])
def test_lora_plans_adapters_alone(command):
    plan = plan_of(command, "--preset", "800T-A2-lora")
    assert plan["task"] == "lora"
    assert plan["trained_parameters"] == 11_919_360


def test_the_plan_says_what_computes_and_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARK13B_NATIVE", "0")
    off = "MindSpore's operators: no native library (SPARK13B_NATIVE=0 switches it off)"
    for command in (("train", "--preset", "cpu-tiny-sft"), ("infer", "--preset", "cpu-tiny-infer")):
        assert plan_of(*command)["computes"] == off
    shared = plan_of("infer", "--preset", "cpu-tiny-infer", "--nproc", "2")
    assert shared["computes"] == "MindSpore's operators: several processes share the model"


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run's folder, whose adapters name a small model as their base."""
    folder = tmp_path_factory.mktemp("plan")
    base = write_small_run(folder / "base", model__num_layers=1)
    rank_0 = folder / "lora" / "checkpoints" / "step-00000001" / "rank_0"
    rank_0.mkdir(parents=True)
    (rank_0.parent / "state.json").write_text("{}")
    shutil.copy(base / "preset.yaml", folder / "lora")
    model, lora = load_preset(str(base / "preset.yaml")).model, LoraConfig(rank=5, targets="q_proj|fc2")
    arrays = {name: np.zeros(shape, np.float32) for name, shape in adapter_shapes(model, lora).items()}
    with open_checkpoint(weights_of(base)) as weights:
        write_adapters(rank_0 / ADAPTERS, arrays, card_of(model, lora, weights))
    return folder / "lora"


@pytest.mark.parametrize("command", ["infer", "serve"])
def test_the_plan_counts_the_adapters_that_are_computed_beside_the_weights(
    lora_run: Path, command: str, capsys: pytest.CaptureFixture[str]
):
    def weights(*arguments: object) -> int:
        assert run([command, *map(str, arguments), "--dry-run", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["memory"]["weights"]

    bare = weights("--load", lora_run.parent / "base")
    with open_checkpoint(lora_run) as adapters:
        beside = sum(array.nbytes for array in adapters.values())
    assert beside == 4 * 5 * (32 + 32 + 32 + 32)
    assert weights("--load", lora_run) == weights("--load", lora_run.parent / "base", "--adapter", lora_run)
    assert weights("--load", lora_run) == bare + beside
    assert weights("--load", lora_run, "--merge-adapter") == bare
    alone = ("--preset", lora_run / "preset.yaml")
    assert weights(*alone, "--adapter", lora_run) == weights(*alone) + beside


def test_the_plan_counts_a_cache_for_each_beam(lora_run: Path, capsys: pytest.CaptureFixture[str]):
    caches = []
    for beams in ((), ("--num-beams", "3")):
        assert run(["infer", "--load", str(lora_run), *beams, "--dry-run", "--json"]) == 0
        caches.append(json.loads(capsys.readouterr().out)["memory"]["cache"])
    assert caches[1] == 4 * caches[0]  # and the one where the prompt is read


def test_a_plan_of_quantised_weights_without_the_library_is_that_of_floats(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    base = lora_run.parent / "base"
    with open_checkpoint(weights_of(base)) as source:
        quantize_checkpoint(source, tmp_path / "int4.safetensors", Wanted(4, 8, 32))
    monkeypatch.setenv("SPARK13B_NATIVE", "0")
    plans = []
    for load in (base, tmp_path / "int4.safetensors"):
        assert run(["infer", "--preset", str(base / "preset.yaml"), "--load", str(load), "--dry-run", "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[0]["memory"] == plans[1]["memory"]
    assert plans[1]["computes"] == f"{plans[0]['computes']}; quantised weights become float32"
    beside = ("--load", str(tmp_path / "int4.safetensors"), "--adapter", str(lora_run))  # whose preset it is
    assert run(["infer", *beside, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["weights"] == plans[1]["memory"]["weights"] + 4 * 5 * 128
    assert run(["infer", "--preset", "cpu-13b-int4-infer", "--dry-run"]) == 2
    assert "MindSpore has no bfloat16 matrix products on a CPU" in capsys.readouterr().err
    preset = ("--preset", "cpu-13b-int4-infer", "--set", "model.compute_type=float32")
    assert run(["infer", *preset, "--set", "machine.max_device_memory_gb=23.5", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "weights need 49.02 GiB a device and may use 23." in said
    assert "switches it off); quantised weights become float32" in said


def test_the_plan_names_the_native_library_with_its_instructions_where_it_computes(
    native_library: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(native_library, ""))
    for command in (("train", "--preset", "cpu-tiny-sft"), ("infer", "--preset", "cpu-tiny-infer")):
        assert run([*command, "--dry-run"]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("computes "))
        told = f"the native library ({native_library.describe()}, float32 products by vectors)"
        assert line.removeprefix("computes").strip() == told


@pytest.mark.parametrize("command", [["infer", "x"], ["chat"]])
def test_all_that_answer_refuse_a_model_that_does_not_fit_with_the_same_words(
    command: list[str],
    lora_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    base = lora_run.parent / "base"
    with open_checkpoint(weights_of(base)) as source:
        quantize_checkpoint(source, tmp_path / "int4.safetensors", Wanted(4, 8, 32))
    monkeypatch.setenv("SPARK13B_NATIVE", "0")
    found = ("--load", str(tmp_path / "int4.safetensors"), "--tokenizer", str(base / "tokenizer"))
    preset = ("--preset", str(base / "preset.yaml"), "--set", "machine.max_device_memory_gb=0.0005")
    assert run([*command, *found, *preset]) == 2
    said = capsys.readouterr().err
    assert "weights need 1.0 MiB a device and may use 536,870 bytes; computes: MindSpore's operators" in said
    assert "run 'spark13b native build'" in said


@pytest.mark.parametrize("command", ["infer", "serve"])
def test_without_a_model_the_plan_is_that_of_the_demos_as_the_answer_would_be(
    command: str, lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SPARK13B_HOME", str(tmp_path))
    assert run([command, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "there is no demo model yet" in said and "--preset NAME" in said
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "sft").symlink_to(lora_run.parent / "base")
    plans = []
    for model in ((), ("--load", str(lora_run.parent / "base"))):
        assert run([command, *model, "--dry-run", "--json"]) == 0
        said = capsys.readouterr()
        plans.append(said.out)
        assert ("the model of 'spark13b demo'" in said.err) == (not model)
    assert plans[0] == plans[1]


def test_a_plan_that_is_too_large_ends_with_exit_code_2_and_what_to_change():
    result = dry_run("train", "--preset", "800T-A2-sft", "--set", "train.recompute=false")
    assert result.stdout == ""
    assert "fix: add --set train.recompute=true (" in result.stderr
    assert result.stderr.endswith("False 2\n")


def test_the_page_on_memory_shows_what_the_commands_print():
    text = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")
    assert dry_run("train", "--preset", "800T-A2-sft").stdout in text
    refused = dry_run("train", "--preset", "800T-A2-sft", "--set", "train.recompute=false").stderr
    assert refused.removesuffix("False 2\n") in text


def test_the_processes_of_one_machine_share_its_memory_however_many_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = SimpleNamespace(total=64 * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    tiny = ["train", "--preset", "cpu-tiny-sft", "--dry-run"]
    for processes in (2, 9, 16):
        assert run([*tiny, "--json", "--nproc", str(processes)]) == 0
        assert json.loads(capsys.readouterr().out)["memory_limit"] == memory.total // processes
    assert run([*tiny, "--nproc", "64"]) == 2
    assert "may use 1.00 GiB" in capsys.readouterr().err
    assert run([*tiny, "--set", "machine.devices=64", "--set", "parallel.data_parallel=64"]) == 0
    planned = " ".join(capsys.readouterr().out.split())
    assert "devices 64 (data_parallel 64 x model_parallel 1), 8 on each of 8 machines" in planned
    assert "limit 8.00 GiB" in planned
