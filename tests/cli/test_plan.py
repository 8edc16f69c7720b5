"""`--dry-run` as a user meets it: a plan on stdout, MindSpore not even loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spark13b.cli.main import run
from spark13b.model import native_choice
from spark13b.native.library import Found, Library

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
    off = "MindSpore's operators: SPARK13B_NATIVE=0 switches it off"
    for command in (("train", "--preset", "cpu-tiny-sft"), ("infer", "--preset", "cpu-tiny-infer")):
        assert plan_of(*command)["computes"] == off
    shared = plan_of("infer", "--preset", "cpu-tiny-infer", "--nproc", "2")
    assert shared["computes"] == "MindSpore's operators: several processes share the model"
    beside = ("infer", "--preset", "cpu-tiny-infer", "--adapter", "adapters.safetensors")
    assert plan_of(*beside)["computes"] == plan_of(*beside, "--merge-adapter")["computes"] == off


def test_the_plan_names_the_native_library_with_its_instructions_where_it_computes(
    native_library: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(native_library, ""))
    for command in (("train", "--preset", "cpu-tiny-sft"), ("infer", "--preset", "cpu-tiny-infer")):
        assert run([*command, "--dry-run"]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("computes "))
        told = f"the native library ({native_library.describe()}, float32 products by vectors)"
        assert line.removeprefix("computes").strip() == told


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
