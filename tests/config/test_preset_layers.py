"""Where a value comes from: extends, precedence, `--set`, and YAML's traps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark13b.config import Preset, load_preset, preset_folder
from spark13b.config.documents import dump, parse_value
from spark13b.errors import InputError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(name: str | Path, *assignments: str, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        load_preset(name, assignments=assignments, **options)
    return caught.value


def test_set_wins_over_options_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "my.yaml", "extends: cpu-tiny-sft\ntrain: {batch_size: 2, seed: 2, log_every: 2}\n")
    options = {"train.batch_size": 3, "train.seed": 3, "train.save_every": None}
    train = load_preset(file, options=options, assignments=["train.batch_size=4"]).train
    assert (train.batch_size, train.seed, train.log_every, train.keep_checkpoints) == (4, 3, 2, 3)
    assert load_preset("cpu-tiny-sft").train.batch_size == 16


def test_of_two_assignments_to_one_key_the_later_wins() -> None:
    preset = load_preset("cpu-tiny-sft", assignments=["train.seed=1", "train.seed=2"])
    assert preset.train.seed == 2


def test_a_file_extends_built_in_names_and_files_beside_it_and_later_ones_win(tmp_path: Path) -> None:
    write(tmp_path, "shared/batch.yaml", "train: {batch_size: 2, seed: 5}\n")
    file = write(
        tmp_path, "deep/my.yaml", "extends: [cpu-tiny-sft, ../shared/batch.yaml]\ntrain:\n  seed: 6\ntask: pretrain\n"
    )
    preset = load_preset(file)
    assert (preset.train.batch_size, preset.train.seed, preset.task) == (2, 6, "pretrain")
    assert preset.schedule.lr == 3e-3


def test_a_preset_is_found_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_preset("800-sft").machine.devices == 16


def test_null_in_a_file_undoes_a_value_below_it(tmp_path: Path) -> None:
    file = write(tmp_path, "my.yaml", "extends: 800T-A2-sft\nschedule:\n  total_steps: null\n")
    assert load_preset(file).schedule.total_steps is None


@pytest.mark.parametrize("way", ["option", "set", "file"])
def test_a_length_in_steps_takes_back_a_length_in_epochs_from_below(tmp_path: Path, way: str) -> None:
    name: str | Path = "800-sft"
    if way == "file":
        name = write(tmp_path, "my.yaml", "extends: 800-sft\ntrain:\n  steps: 7\n")
    preset = load_preset(
        name,
        options={"train.steps": 7} if way == "option" else None,
        assignments=["train.steps=7"] if way == "set" else (),
    )
    assert (preset.train.steps, preset.train.epochs) == (7, None)
    again = load_preset(name, options={"train.steps": 7}, assignments=["train.epochs=2"])
    assert (again.train.steps, again.train.epochs) == (None, 2)


def test_steps_and_epochs_in_one_place_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "my.yaml", "extends: cpu-tiny-sft\ntrain: {steps: 3, epochs: 2}\n")
    error = refused(file)
    assert error.what == "train.epochs: 2 epochs and 3 steps both set the length"
    assert (error.where, error.line) == (str(file), 2)


def test_a_length_in_tokens_is_one_of_three_ways(tmp_path: Path) -> None:
    train = load_preset("800-sft", assignments=["train.tokens=5000"]).train
    assert (train.steps, train.epochs, train.tokens) == (None, None, 5000)
    saved = write(tmp_path, "saved.yaml", load_preset("cpu-tiny-sft", assignments=["train.tokens=5000"]).to_yaml())
    again = load_preset(saved, assignments=["train.steps=7"]).train
    assert (again.steps, again.epochs, again.tokens) == (7, None, None)
    file = write(tmp_path, "my.yaml", "extends: cpu-tiny-sft\ntrain: {steps: 3, epochs: 2, tokens: 9}\n")
    assert refused(file).what == "train.epochs: 2 epochs and 3 steps and 9 tokens all set the length"


def test_a_run_without_a_length_is_one_epoch() -> None:
    train = load_preset("cpu-tiny-sft").train
    assert (train.steps, train.epochs) == (None, 1)


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("schedule.lr=1e-4", "lr", 1e-4),  # YAML 1.1 reads this as text
        ("schedule.lr=1E-4", "lr", 1e-4),
        ("schedule.lr=1", "lr", 1.0),
        ("schedule.lr=3.e-4", "lr", 3e-4),
        ("schedule.total_steps=null", "total_steps", None),
        ("schedule.kind=linear", "kind", "linear"),
        (" schedule.warmup_steps =7", "warmup_steps", 7),
        ("schedule={kind: constant, lr: 1e-3}", "kind", "constant"),
    ],
)
def test_assigned_values_are_read_as_yaml(assignment: str, key: str, value: object) -> None:
    found = getattr(load_preset("cpu-tiny-sft", assignments=[assignment]).schedule, key)
    assert found == value and type(found) is type(value)


def test_a_text_is_assigned_as_it_stands() -> None:
    assignments = ["generation.prompt_template=Q: {} = A: ", "lora.targets=|fc0", "machine.name=7"]
    preset = load_preset("cpu-tiny-sft", assignments=assignments)
    assert preset.generation.prompt_template == "Q: {} = A: "
    assert (preset.lora.targets, preset.machine.name) == ("|fc0", "7")


@pytest.mark.parametrize("assignment", ["model.seq_length", "=3", "model..seq_length=3", ""])
def test_an_assignment_that_is_none_is_refused(assignment: str) -> None:
    error = refused("cpu-tiny-sft", assignment)
    assert error.what == "not of the form KEY=VALUE"
    assert error.where == f"--set {assignment}"


def test_an_assignment_without_a_value_is_refused() -> None:
    assert "no value" in refused("cpu-tiny-sft", "train.steps=").what


def test_broken_yaml_in_an_assignment_names_the_assignment() -> None:
    error = refused("cpu-tiny-sft", "train.steps=[1")
    assert error.what.startswith("broken YAML:")
    assert error.where == "--set train.steps=[1"


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    error = refused("cpu-tiny-sfft")
    assert error.what == "there is no preset 'cpu-tiny-sfft'"
    assert error.fix is not None and "did you mean 'cpu-tiny-sft'?" in error.fix


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("missing.yaml", tmp_path / "missing"):
        assert refused(name).what == "there is no such preset file"
    assert refused(tmp_path).what == "a folder is not a preset"


def test_an_unknown_extended_name_is_refused_at_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, "my.yaml", "task: sft\nextends:\n- parts/modle-13b\n")
    error = refused(file)
    assert (error.what, error.where, error.line) == ("there is no preset 'parts/modle-13b'", str(file), 2)
    assert error.fix is not None and "'parts/model-13b'" in error.fix
    file = write(tmp_path, "my.yaml", "extends: other.yaml\n")
    assert refused(file).what == "there is no file 'other.yaml' to extend"


@pytest.mark.parametrize("value", ["3", "[3]", "{a: b}", "null"])
def test_extends_that_are_no_names_are_refused(tmp_path: Path, value: str) -> None:
    file = write(tmp_path, "my.yaml", f"extends: {value}\n")
    assert refused(file).what == "extends: expected names of presets, parts or files"


def test_a_circle_is_refused_and_shown(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: [cpu-tiny-sft, c.yaml]\n")
    write(tmp_path, "c.yaml", "extends: b.yaml\n")
    error = refused(tmp_path / "a.yaml")
    assert error.what == "presets extend each other in a circle: b.yaml -> c.yaml -> b.yaml"
    assert error.where == str(tmp_path / "c.yaml")
    write(tmp_path, "self.yaml", "extends: self.yaml\n")
    assert "self.yaml -> self.yaml" in refused(tmp_path / "self.yaml").what


def test_a_part_may_be_reached_twice(tmp_path: Path) -> None:
    file = write(tmp_path, "my.yaml", "extends: [parts/machine-cpu, cpu-tiny-sft]\n")
    assert load_preset(file) == load_preset("cpu-tiny-sft")


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("task: sft\nmodel: [1\nx: 2\n", "broken YAML: ", 3),
        ("task: sft\n\tmodel: 1\n", "broken YAML: ", 2),
        ("task: sft\ntask: lora\n", "the key 'task' stands twice", 2),
        ("train:\n  seed: 1\n  seed: 2\n", "the key 'seed' stands twice", 3),
        ("a: 1\n---\nb: 2\n", "broken YAML: but found another document", 2),
        ("a: &x\n  b: *x\n", "broken YAML: a value contains itself", 1),
        ("? [a]\n: 1\n", "broken YAML: a key is not text", 1),
        ("a: !!python/name:os.system x\n", "broken YAML: could not determine a constructor", 1),
        ("a: \x01\n", "broken YAML: ", None),
        ("a: 0x_\n", "broken YAML: ", None),
        ("", "the file is empty", None),
        ("# only a comment\n", "the file is empty", None),
        ("- a\n- b\n", "the file holds no sections", None),
        ("just text", "the file holds no sections", None),
    ],
)
def test_broken_yaml_names_the_file_and_the_line(tmp_path: Path, text: str, what: str, line: int | None) -> None:
    file = write(tmp_path, "bad.yaml", text)
    error = refused(file)
    assert error.what.startswith(what)
    assert (error.where, error.line) == (str(file), line)
    assert error.fix


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gbk.yaml"
    file.write_bytes("description: 星火\n".encode("gbk"))
    assert refused(file).what == "the file is not UTF-8 text"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_bytes(b"\xef\xbb\xbfextends: cpu-tiny-sft\n")
    assert load_preset(file).task == "sft"


def test_yaml_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = "extends: cpu-tiny-sft\noptimizer: &betas {beta1: 0.8}\n"
    assert load_preset(write(tmp_path, "my.yaml", text)).optimizer.beta1 == 0.8
    merged = parse_value("{a: &x {b: 1}, c: {<<: *x, d: 2}}", "here")
    assert merged["c"] == {"b": 1, "d": 2}


@given(st.floats(min_value=1e-300, max_value=1.0, exclude_min=True))
def test_every_float_survives_being_written_and_read(value: float) -> None:
    assert parse_value(dump({"lr": value}), "here") == {"lr": value}
    assert parse_value(f"{value:e}", "here") == float(f"{value:e}")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_description_survives_the_round_trip(text: str) -> None:
    values = load_preset("cpu-tiny-sft").model_dump() | {"description": text}
    preset = Preset.model_validate(values)
    assert Preset.model_validate(parse_value(preset.to_yaml(), "here")) == preset


def test_the_folder_of_presets_is_that_of_the_source_tree() -> None:
    assert preset_folder() == Path(__file__).parents[2] / "presets"


def test_an_installed_wheel_has_its_presets_inside_the_package(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    shutil.copytree(root / "src" / "spark13b" / "config", tmp_path / "spark13b" / "config")
    for module in ("__init__.py", "errors.py"):
        shutil.copy(root / "src" / "spark13b" / module, tmp_path / "spark13b" / module)
    shutil.copytree(root / "presets", tmp_path / "spark13b" / "presets")  # what force-include in pyproject.toml does
    script = "from spark13b.config import *; print(preset_folder()); print(load_preset('800-sft').task)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.stdout.splitlines() == [str(tmp_path / "spark13b" / "presets"), "sft"]
