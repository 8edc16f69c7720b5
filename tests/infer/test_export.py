"""`spark13b export`: graphs that run without spark13b, folders that other tools read, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.small_run import TOKENIZER, write_small_run
from model.numpy_model import NumpyModel
from spark13b.ckpt import open_checkpoint
from spark13b.ckpt.adapters import AdapterCard, write_adapters
from spark13b.cli.main import run
from spark13b.config import LoraConfig, load_preset
from spark13b.infer.session import find_model
from spark13b.model.names import adapter_shapes

ON_NPU = ["--set=machine.device=ascend", "--set=machine.chip=910B"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: window 20, context 96."""
    folder = tmp_path_factory.mktemp("export") / "run"
    return write_small_run(folder, model__seq_length=96, model__sparse_local_size=20)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder of one layer, whose graphs are compiled in less time."""
    folder = tmp_path_factory.mktemp("smallest") / "run"
    return write_small_run(folder, model__num_layers=1, model__seq_length=96, model__sparse_local_size=20)


@pytest.fixture(scope="module")
def exported(small: Path) -> Path:
    """Graphs for two texts at once, made and checked as the command does it."""
    folder = small.parent / "exported"
    words = ["export", "--load", small, "--output", folder, "--batch-size", 2, "--prompt-length", 24]
    assert run([str(word) for word in words]) == 0
    return folder


@pytest.fixture(scope="module")
def hub(small: Path) -> Path:
    """The same model for other tools, in shards."""
    folder = small.parent / "hub"
    words = ["--load", small, "--output", folder, "--format", "safetensors", "--shard-size", "1MB"]
    code = f"""
import sys
from spark13b.cli.main import run
status = run({["export", *map(str, words)]})
print("loaded:", [name for name in ("mindspore", "torch") if name in sys.modules], "status:", status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "loaded: [] status: 0" in done.stdout, done.stderr
    return folder


@pytest.fixture(scope="module")
def adapters(smallest: Path) -> Path:
    """Adapters of rank 2, scaled by 4, for the model of one layer."""
    lora = LoraConfig(rank=2, alpha=8.0, targets="fc2|q_proj")
    config, rng = load_preset(str(smallest / "preset.yaml")).model, np.random.default_rng(4)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in adapter_shapes(config, lora).items()
    }
    write_adapters(smallest.parent / "adapters.safetensors", arrays, AdapterCard(lora=lora))
    return smallest.parent / "adapters.safetensors"


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "spark13b-export.json").read_text())
    return found


def weights_of(load: Path) -> dict[str, np.ndarray]:
    """The weights as a model gets them from `load`."""
    found = find_model(load, None, None, {}, [])
    with found.weights.open(found.preset.model) as parts:
        return {name: parts.base[name] for name in parts.base}


def test_the_manifest_tells_shapes_in_order_and_a_sum_for_every_file(exported: Path) -> None:
    manifest = manifest_of(exported)
    names = ["keys.0", "keys.1", "values.0", "values.1"]
    decode = manifest["decode"]
    assert [port["name"] for port in decode["inputs"]] == ["ids", "positions", *names]
    assert [port["name"] for port in decode["outputs"]] == ["logits", *names]
    assert decode["inputs"][2] == {"name": "keys.0", "dtype": "float32", "shape": [2, 4, 20, 8]}
    assert manifest["prefill"]["inputs"][0] == {"name": "ids", "dtype": "int32", "shape": [2, 24]}
    assert manifest["prefill"]["outputs"] == decode["outputs"]
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert manifest["sha256"].keys() == files - {"spark13b-export.json"}
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    assert (exported / "tokenizer" / "tokenizer.model").read_bytes() == (TOKENIZER / "tokenizer.model").read_bytes()
    assert load_preset(str(exported / "preset.yaml")).model.sparse_local_size == 20


def test_the_check_compared_tokens_past_the_window(exported: Path) -> None:
    check = manifest_of(exported)["check"]
    assert check["prompts"] == 4 and check["tokens"] >= 32
    assert check["ties"] == 0 and check["passed_window"]


def test_the_graphs_give_the_logits_of_the_whole_text_at_every_length(exported: Path, small: Path) -> None:
    from spark13b.infer.export.run_back import ExportedModel

    config = load_preset(str(small / "preset.yaml")).model
    lengths, texts = (24, 5), np.random.default_rng(0).integers(0, config.vocab_size, (2, 60))
    expected = NumpyModel(config, weights_of(small)).logits(texts)
    model = ExportedModel(exported)
    logits = model.prefill([text[:length].tolist() for text, length in zip(texts, lengths, strict=True)])
    for place in range(30):
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(logits[row], expected[row, length - 1 + place], rtol=1e-3, atol=2e-4)
        logits = model.step([texts[row, length + place] for row, length in enumerate(lengths)])


def test_the_program_on_the_page_answers_as_the_model_does(
    exported: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    program = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(exported.parent)
    names: dict[str, Any] = {}
    exec(program, names)
    prompt, answer = names["prompt"], names["answer"]
    assert len(answer) > 40 and capfd.readouterr().out.strip()
    config = load_preset(str(small / "preset.yaml")).model
    logits = NumpyModel(config, weights_of(small)).logits(np.array([prompt + answer]))[0, len(prompt) - 1 : -1]
    assert logits.argmax(-1).tolist() == answer


def test_weights_too_large_for_one_file_stand_once_beside_both_graphs(
    smallest: Path, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mindspore.train.serialization.TOTAL_SAVE", 100)  # kilobytes, instead of a gigabyte
    words = [
        "export",
        "--load",
        smallest,
        "--output",
        tmp_path / "out",
        "--prompt-length",
        16,
        "--context",
        28,
        "--json",
    ]
    halves = [f"--set=model.{name}=float16" for name in ("compute_type", "param_init_type", "softmax_compute_type")]
    assert (
        run([str(word) for word in [*words, *ON_NPU, *halves, "--adapter", adapters]]) == 0
    )  # the check loads them in another process
    said = json.loads(capfd.readouterr().out)
    assert (said["prefill"]["file"], said["decode"]["file"]) == ("prefill_graph.mindir", "decode_graph.mindir")
    assert said["check"]["tokens"] >= 30 and said["check"]["passed_window"]
    assert [path.name for path in (tmp_path / "out" / "variables").iterdir()] == ["data_0"]
    assert not list((tmp_path / "out").glob("*_variables"))
    assert said["decode"]["inputs"][2]["dtype"] == "float16"
    weights = (tmp_path / "out" / "variables" / "data_0").read_bytes()
    linear = "transformer.transformer.layers.0.mlp.fc2"
    with open_checkpoint(adapters) as tensors:
        a, b = (tensors[f"{linear}.mindpet_delta_lora_{letter}"] for letter in "ab")
    assert (weights_of(smallest)[f"{linear}.weight"] + b @ a * 4).astype(np.float16)[0].tobytes() in weights


def test_graphs_that_answer_otherwise_fail_and_leave_nothing(
    smallest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from spark13b.infer.export import graphs

    monkeypatch.setattr(graphs, "FORBIDDEN", 0.0)  # slots not written yet are seen
    words = ["export", "--load", smallest, "--output", tmp_path / "out", "--prompt-length", 8, "--context", 16]
    assert run([str(word) for word in words]) == 1
    said = capfd.readouterr().err
    assert "do not answer as the model does: token" in said and "nothing was written" in said
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, file_name: str, **__: object) -> None:
        Path(file_name).write_bytes(b"the first half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mindspore.export", full)
    assert run(["export", "--load", str(small), "--output", str(tmp_path / "out"), "--prompt-length", "8"]) == 1
    assert f"the disk is full: 8.5 MB needed\n  at: {tmp_path}" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_folder_for_other_tools_has_torch_s_tensors_and_everything_beside_them(hub: Path, small: Path) -> None:
    from safetensors.numpy import load_file

    index = json.loads((hub / "model.safetensors.index.json").read_text())
    shards = {file: load_file(hub / file) for file in set(index["weight_map"].values())}
    assert len(shards) > 1
    found = {name: shards[file][name] for name, file in index["weight_map"].items()}
    ours = weights_of(small)
    layer = "transformer.layers.1."
    fused = found[f"{layer}attention.q_k_v_proj.weight"]
    assert np.array_equal(fused[32:64], ours[f"transformer.{layer}attention.k_proj.weight"])
    assert np.array_equal(found[f"{layer}mlp.fc1.bias"][1::2], ours[f"transformer.{layer}mlp.fc1.bias"])
    config = json.loads((hub / "config.json").read_text())
    assert config["model_type"] == "iflytek_spark" and config["tie_word_embeddings"]
    assert (config["num_hidden_layers"], config["intermediate_size"], config["sliding_window"]) == (2, 32, 20)
    assert (config["num_layers"], config["ffn_hidden_size"], config["torch_dtype"]) == (2, 64, "float32")
    assert json.loads((hub / "generation_config.json").read_text())["eos_token_id"] == 5
    assert (hub / "tokenizer.model").read_bytes() == (TOKENIZER / "tokenizer.model").read_bytes()
    assert "96 x 32" in (hub / "README.md").read_text()


def test_spark13b_reads_the_folder_back_by_its_name_alone(hub: Path, small: Path) -> None:
    ours, theirs = weights_of(small), weights_of(hub)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert find_model(hub, None, None, {}, []).tokenizer.where == str(hub / "tokenizer.model")


def test_adapters_are_folded_in_and_numbers_become_smaller(smallest: Path, adapters: Path, tmp_path: Path) -> None:
    words = ["export", "--load", smallest, "--adapter", adapters, "--dtype", "float16"]
    assert run([str(word) for word in [*words, "--format", "safetensors", "--output", tmp_path / "hub"]]) == 0
    linear = "transformer.transformer.layers.0.mlp.fc2"
    with open_checkpoint(adapters) as tensors:
        a, b = (tensors[f"{linear}.mindpet_delta_lora_{letter}"] for letter in "ab")
    expected = weights_of(smallest)[f"{linear}.weight"] + b @ a * 4
    with open_checkpoint(tmp_path / "hub") as found:
        assert found.dtypes()["embedding.word_embeddings.weight"] == np.float32
        np.testing.assert_allclose(found["transformer.layers.0.mlp.fc2.weight"], expected.astype(np.float16), rtol=2e-3)
        assert (tmp_path / "hub" / "model.safetensors").is_file()


def test_a_full_disk_leaves_no_folder_for_other_tools(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5))  # type: ignore[attr-defined]
    words = ["export", "--load", str(small), "--format", "safetensors", "--output", str(tmp_path / "out")]
    assert run(words) == 1
    assert "the disk has not enough room: 1.1 MB needed, 100.0 kB free" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_memory_that_would_not_be_enough_is_told_before_it_is_filled(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Memory:
        available = 800 * 10**6

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    assert run(["export", "--load", str(small), "--output", str(tmp_path / "out")]) == 1
    said = capfd.readouterr().err
    assert "the memory is not enough: 1.2 GB needed, 800.0 MB free" in said
    assert "add --no-check: 601.7 MB needed" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "onnx"], "there is no format 'onnx'\n  at: --format\n  fix: known are mindir and safetensors"),
        (["--format", "safetensor"], "did you mean 'safetensors'?"),
        (["--context", "97"], "a context of 97 tokens is more than the model's 96\n  at: --context"),
        (["--prompt-length", "65", "--context", "64"], "prompts of 65 tokens are more than the context of 64"),
        (["--batch-size", "0"], "0 is too small\n  at: --batch-size"),
        (["--context", "1"], "1 is too small\n  at: --context\n  fix: choose 2 or more"),
        (["--dtype", "float16"], "--dtype is for --format safetensors"),
        (["--format", "safetensors", "--no-check"], "--check/--no-check is for --format mindir"),
        (["--format", "safetensors", "--dtype", "int8"], "weights cannot be converted to 'int8'"),
        (["--format", "safetensors", "--shard-size", "few"], "'few' is no size"),
        ([*ON_NPU, "--set=model.compute_type=bfloat16"], "no bfloat16 on a CPU, so the graphs can neither be made nor"),
        (["--format", "safetensors", "--set", "model.num_layers=3"], "missing"),
        (["--preset", "800-infer", "--tokenizer", str(TOKENIZER)], "of another shape"),
    ],
)
def test_what_cannot_be_exported_is_told_with_its_place(
    words: list[str], said: str, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "--load", str(small), "--output", str(tmp_path / "out"), *words]) == 2
    assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_without_force_nor_its_own_source_with_it(
    hub: Path, small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(hub.iterdir())
    words = ["export", "--format", "safetensors", "--output", str(hub)]
    assert run([*words, "--load", str(small)]) == 2
    assert "the output already exists" in capfd.readouterr().err
    assert run([*words, "--load", str(hub), "--force"]) == 2
    assert "the output would replace its own source" in capfd.readouterr().err
    assert sorted(hub.iterdir()) == before
    assert run([*words, "--load", str(small), "--force"]) == 0
    assert (hub / "model.safetensors").is_file() and not list(hub.glob("*-of-*"))
