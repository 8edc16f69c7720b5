"""`spark13b ckpt` as a person runs it: exit codes, what is said and where; the page's commands as real processes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from in_process import Run

from infer.small_run import write_small_run
from spark13b.ckpt import expected_shapes, open_checkpoint, write_checkpoint
from spark13b.ckpt.torch_names import to_torch
from spark13b.config import load_preset
from spark13b.infer.session import find_model

SPARK = [sys.executable, "-m", "spark13b"]
PRESET = "cpu-tiny-sft"


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = expected_shapes(load_preset(PRESET).model)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def weights(tmp_path: Path, tensors: dict) -> Path:
    write_checkpoint(tmp_path / "weights", tensors, member="rank_0/model.ckpt")
    return tmp_path / "weights"


def test_info_tells_parameters_formats_and_presets(spark13b: Run, weights: Path, tensors: dict) -> None:
    said = spark13b("ckpt", "info", weights).stdout
    count = sum(array.size for array in tensors.values())
    assert f"parameters: {count:,}" in said and "attention.q_proj.weight" in said and PRESET in said
    summary = json.loads(spark13b("ckpt", "info", weights, "--json").stdout)
    assert summary["parameters"] == count and summary["format"] == "ckpt" and PRESET in summary["presets"]
    assert [tensor["name"] for tensor in summary["tensors"]] == list(tensors)
    assert summary["with_checksum"] == len(tensors)


def test_a_folder_of_a_runs_weights_is_loaded_by_its_name_alone(spark13b: Run, tmp_path: Path) -> None:
    run = write_small_run(tmp_path / "run", model__hidden_size=64)
    for number, words in enumerate((["ckpt", "quantize", "--bits", 4], ["convert", "dtype"])):
        made = tmp_path / f"made-{number}"
        assert f"--load {made} finds them" in spark13b(*words, run, made).stderr.replace("\n", " ")
        found = find_model(made, None, None, {}, ())
        assert found.preset.model == find_model(run, None, None, {}, ()).preset.model
        assert found.tokenizer.fingerprint == find_model(run, None, None, {}, ()).tokenizer.fingerprint
    again = spark13b("ckpt", "quantize", tmp_path / "made-0", tmp_path / "again", "--bits", 4)
    assert "note: these are int4/64" in again.stderr
    spark13b("convert", "dtype", run, tmp_path / "one.safetensors")
    assert not (tmp_path / "preset.yaml").exists() and not (tmp_path / "tokenizer").exists()


def test_a_round_trip_through_every_format_changes_no_bit(
    spark13b: Run, tmp_path: Path, weights: Path, tensors: dict
) -> None:
    spark13b("ckpt", "convert", weights, tmp_path / "a.safetensors")
    spark13b("ckpt", "convert", tmp_path / "a.safetensors", tmp_path / "b.pt")
    spark13b("ckpt", "convert", tmp_path / "b.pt", tmp_path / "shards", "--to", "safetensors", "--shard-size", "1MB")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 1
    spark13b("ckpt", "convert", tmp_path / "shards", tmp_path / "c.ckpt")
    with open_checkpoint(tmp_path / "c.ckpt") as back:
        assert all(back[name].tobytes() == array.tobytes() for name, array in tensors.items())
    original = (weights / "rank_0" / "model.ckpt").read_bytes()
    assert (tmp_path / "c.ckpt").read_bytes() == original


def test_without_a_known_suffix_the_format_must_be_named(spark13b: Run, tmp_path: Path, weights: Path) -> None:
    assert "--to ckpt|safetensors|torch" in spark13b("ckpt", "convert", weights, tmp_path / "out", code=2).stderr
    assert (
        "is no size"
        in spark13b("ckpt", "convert", weights, tmp_path / "o", "--to", "torch", "--shard-size", "x", code=2).stderr
    )


def test_an_unknown_format_is_refused_in_plain_words(spark13b: Run, tmp_path: Path, weights: Path) -> None:
    said = spark13b("ckpt", "convert", weights, tmp_path / "out", "--to", "onnx", code=2).stderr
    assert "error: Invalid value for '--to': 'onnx' is not one of 'ckpt', 'safetensors', 'torch'\n" in said


def test_training_state_and_adapters_are_cut_off(spark13b: Run, tmp_path: Path, tensors: dict) -> None:
    layer = "transformer.transformer.layers.0.attention.q_proj."
    extra = {
        f"{layer}mindpet_delta_lora_a": np.ones((3, 4), np.float32),
        f"adam_m.{layer}mindpet_delta_lora_a": np.ones((3, 4), np.float32),
        "global_step": np.array(5, np.int32),
    }
    write_checkpoint(tmp_path / "all.ckpt", tensors | extra)
    said = spark13b("ckpt", "convert", tmp_path / "all.ckpt", tmp_path / "w.ckpt", "--keep", "weights")
    assert "left out: 1 LoRA adapters, 2 entries of training state" in said.stderr
    with open_checkpoint(tmp_path / "w.ckpt") as kept:
        assert set(kept) == set(tensors)
    spark13b("ckpt", "verify", tmp_path / "w.ckpt", "--preset", PRESET)


def test_verify_ends_with_1_when_anything_is_wrong(spark13b: Run, tmp_path: Path, weights: Path, tensors: dict) -> None:
    assert "sound" in spark13b("ckpt", "verify", weights, "--preset", PRESET).stdout
    wider = ("--set", "model.ffn_hidden_size=1024")
    assert "does not fit" in spark13b("ckpt", "verify", weights, "--preset", PRESET, *wider, code=1).stdout
    assert "add --preset" in spark13b("ckpt", "verify", weights, *wider, code=2).stderr
    file = weights / "rank_0" / "model.ckpt"
    data = bytearray(file.read_bytes())
    name = "transformer.transformer.layers.0.mlp.fc2.weight"
    data[data.index(tensors[name].tobytes()) + 9] ^= 16
    file.write_bytes(data)
    said = json.loads(spark13b("ckpt", "verify", weights, "--json", code=1).stdout)
    assert not said["sound"] and f"tensor '{name}' does not match its checksum" in said["problems"][0]["what"]
    said = spark13b("ckpt", "verify", weights, "--preset", "800T-A2-infer", code=1).stdout
    assert "does not fit the model" in said and "2 problems" in said
    file.write_bytes(data[:-1000])
    assert "truncated" in spark13b("ckpt", "verify", weights, code=2).stderr


def test_diff_ends_with_1_when_checkpoints_differ(spark13b: Run, tmp_path: Path, weights: Path, tensors: dict) -> None:
    spark13b("ckpt", "convert", weights, tmp_path / "same.safetensors")
    assert f"equal: {len(tensors)} tensors" in spark13b("ckpt", "diff", weights, tmp_path / "same.safetensors").stdout
    spark13b("ckpt", "convert", weights, tmp_path / "half.ckpt", "--dtype", "bfloat16")
    said = json.loads(spark13b("ckpt", "diff", weights, tmp_path / "half.ckpt", "--json", code=1).stdout)
    assert not said["equal"] and all(0 < item["relative"] <= 2**-8 for item in said["differences"])
    assert not [item for item in said["differences"] if "norm" in item["name"] or "embedding" in item["name"]]


def test_slices_are_cut_and_cut_anew_and_joined(spark13b: Run, tmp_path: Path, weights: Path, tensors: dict) -> None:
    spark13b("ckpt", "split", weights, tmp_path / "s", "--data-parallel", 2, "--model-parallel", 2)
    assert (tmp_path / "s" / "rank_3" / "model.ckpt").is_file()
    assert json.loads((tmp_path / "s" / "spark13b-slices.json").read_text())["model_parallel"] == 2
    spark13b("ckpt", "split", tmp_path / "s", tmp_path / "t", "--data-parallel", 4, "--optimizer-shard")
    spark13b("ckpt", "merge", tmp_path / "t", tmp_path / "whole")
    assert (tmp_path / "whole" / "rank_0" / "model.ckpt").read_bytes() == (
        weights / "rank_0" / "model.ckpt"
    ).read_bytes()
    said = spark13b("ckpt", "merge", weights, tmp_path / "x", code=2)
    assert "no slices: the checkpoint is whole" in said.stderr and "ckpt convert" in said.stderr
    shutil.copytree(weights / "rank_0", weights / "rank_1")
    said = spark13b("ckpt", "merge", weights, tmp_path / "x", code=2)
    assert "--strategy FILE" in said.stderr
    assert "no such checkpoint" in spark13b("ckpt", "merge", tmp_path / "none", tmp_path / "x", code=2).stderr


def test_slices_in_a_run_are_joined_by_the_name_of_the_run(spark13b: Run, tmp_path: Path, weights: Path) -> None:
    run = tmp_path / "run"
    spark13b("ckpt", "split", weights, run / "checkpoints" / "step-00000002", "--model-parallel", 2)
    (run / "checkpoints" / "step-00000002" / "state.json").write_text("{}")
    (run / "preset.yaml").write_text(f"extends: {PRESET}\n")
    spark13b("ckpt", "merge", run, tmp_path / "whole.ckpt")
    assert "equal" in spark13b("ckpt", "diff", weights, tmp_path / "whole.ckpt").stdout


def test_what_cannot_be_split_is_refused(spark13b: Run, tmp_path: Path, weights: Path) -> None:
    said = spark13b("ckpt", "split", weights, tmp_path / "u", "--model-parallel", 7, code=2)
    assert "does not divide" in said.stderr and not (tmp_path / "u").exists()


def test_slices_of_mindspore_are_joined_with_their_strategy(spark13b: Run, tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(8, 3)
    for rank in range(2):
        write_checkpoint(tmp_path / f"run/rank_{rank}/a.ckpt", {"w": whole[4 * rank : 4 * rank + 4]})
    layout = {"dev_matrix": [2], "tensor_map": [0, -1], "field": 0}
    layout |= {"opt_weight_shard_size": 0, "opt_weight_shard_step": 0, "param_split_shape": [], "indices_offset": []}
    strategy = {"parallel_strategy_item": {"n": {"stage": 0}}, "parallel_layout_item": {"w": layout}}
    (tmp_path / "strategy.json").write_text(json.dumps(strategy))
    spark13b("ckpt", "merge", tmp_path / "run", tmp_path / "out.ckpt", "--strategy", tmp_path / "strategy.json")
    with open_checkpoint(tmp_path / "out.ckpt") as merged:
        assert np.array_equal(merged["w"], whole)


def test_everything_the_page_shows_happens(tmp_path: Path, weights: Path) -> None:
    with open_checkpoint(weights) as source:
        write_checkpoint(tmp_path / "spark.pt", to_torch(source), "torch")
    shutil.rmtree(weights)
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    shown = "".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL))
    commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)
    assert len(commands) == 13
    for line, expected in commands:
        words = line.split()
        if words[0] == "spark13b":
            words[:1] = SPARK
        ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert without_speed(ran.stdout) == without_speed(expected), line
    ((script, expected),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == expected


def without_speed(text: str) -> str:
    return re.sub(r"in \S+ \([\d.]+ \w+/s\)", "in TIME", text)


@pytest.mark.parametrize(
    "command", ["convert", "quantize", "info", "verify", "diff", "split", "merge", "merge-lora", "extract-lora"]
)
def test_every_help_page_ends_with_an_example(spark13b: Run, command: str) -> None:
    assert f"Example: spark13b ckpt {command}" in " ".join(spark13b("ckpt", command, "--help").stdout.split())


def test_help_and_info_load_neither_mindspore_nor_torch(weights: Path) -> None:
    code = (
        "import sys; from spark13b.cli.main import run\n"
        f"run(['ckpt', '--help']); run(['convert', 'dtype', '--help']); run(['ckpt', 'info', {str(weights)!r}])\n"
        "sys.stderr.write(str([m for m in ('mindspore', 'torch') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("[]")
