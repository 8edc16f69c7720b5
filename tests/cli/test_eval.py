"""`spark13b eval`: a model by its run's folder or by itself, and what is missing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from spark13b.ckpt import expected_shapes, write_checkpoint
from spark13b.cli.main import run
from spark13b.data.mindrecord import row_info
from spark13b.infer import comparison
from spark13b.native.library import Found, Library
from spark13b.run_folder import RunFolder
from train.small_run import small_preset, small_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return small_rows(tmp_path_factory.mktemp("rows"), records=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RunFolder:
    """A run whose model gives every token the same probability."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    preset = small_preset()
    folder.preset.write_text(preset.to_yaml())
    weights = folder.checkpoint(3) / "rank_0" / "model.ckpt"
    weights.parent.mkdir(parents=True)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(preset.model).items()}
    write_checkpoint(weights, arrays)
    (folder.checkpoint(3) / "state.json").write_text("{}")
    folder.best.symlink_to("step-00000003")
    return folder


def test_the_best_checkpoint_of_a_run_is_measured_with_the_run_s_preset(folder, rows, spark13b):
    done = spark13b("eval", "--data", rows, "--load", folder.best, "--json", "--batch-size", 5)
    found = json.loads(done.stdout)
    assert found["loss"] == pytest.approx(math.log(8000), rel=1e-5)
    assert found["perplexity"] == pytest.approx(8000, rel=1e-4)
    assert (found["accuracy"], found["rows"]) == (1.0, row_info(rows).rows)  # no logit is above the target's
    assert f"evaluating: {found['rows']}/{found['rows']} rows" in done.stderr


def test_a_preset_and_a_bare_checkpoint_do_as_well_and_a_person_reads_one_line(folder, rows, tmp_path, capsys):
    bare = tmp_path / "bare.ckpt"
    bare.write_bytes((folder.checkpoint(3) / "rank_0" / "model.ckpt").read_bytes())
    code = run(["eval", "--preset", str(folder.preset), "--data", str(rows), "--load", str(bare)])
    assert code == 0
    out = capsys.readouterr().out
    assert out.startswith("loss 8.9872, perplexity ")
    assert out.rstrip().endswith(f"of {row_info(rows).rows} rows)")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--load", "LOAD"], "no rows were given"),
        (["--data", "ROWS"], "no model was given"),
        (["--data", "ROWS", "--load", "ROWS"], "no preset was given"),
        (["--data", "ROWS", "--load", "none.ckpt", "--preset", "cpu-tiny-sft"], "no such checkpoint"),
        (["--data", "none.mindrecord", "--load", "LOAD"], "none.mindrecord"),
        (["--data", "ROWS", "--load", "LOAD", "--set", "model.seq_length=16"], "the rows hold 32 tokens"),
        (["--data", "ROWS", "--load", "LOAD", "--batch-size", "0"], "--batch-size"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_told(folder, rows, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    places = {"ROWS": str(rows), "LOAD": str(folder.path)}
    assert run(["eval", *(places.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "fix:" in error


def test_a_quantised_model_is_compared_with_its_source_and_each_perplexity_is_that_of_eval(
    rows: Path, tmp_path: Path, native_library: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """`eval` computes another way: MindSpore's graphs, from weights that are widened. Logits tie nowhere here."""
    monkeypatch.setattr(comparison, "find_library", lambda: Found(native_library, ""))
    preset = small_preset(model__hidden_size=128, model__ffn_hidden_size=256)
    (tmp_path / "preset.yaml").write_text(preset.to_yaml())
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in expected_shapes(preset.model).items()
    }
    write_checkpoint(tmp_path / "base.safetensors", arrays, "safetensors")
    assert run(["ckpt", "quantize", str(tmp_path / "base.safetensors"), str(tmp_path / "int4"), "--bits", "4"]) == 0
    capsys.readouterr()

    def measured(load: str, *more: str) -> dict[str, float]:
        command = [
            "eval",
            "--preset",
            str(tmp_path / "preset.yaml"),
            "--data",
            str(rows),
            "--load",
            str(tmp_path / load),
        ]
        assert run([*command, "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    both = measured("int4", "--against", str(tmp_path / "base.safetensors"))
    base, rounded = measured("base.safetensors"), measured("int4")
    assert both["base_loss"] == pytest.approx(base["loss"], rel=1e-5)
    assert both["loss"] == pytest.approx(rounded["loss"], rel=1e-5)
    assert both["tokens"] == base["tokens"]
    assert 0.1 < both["agreement"] < 1
    same = measured("base.safetensors", "--against", str(tmp_path / "base.safetensors"))
    assert same["agreement"] == 1 and same["loss"] == same["base_loss"]
