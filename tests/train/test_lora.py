"""LoRA runs: what they change, what they keep, and that they go on where they stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark13b.ckpt import expected_shapes, open_checkpoint, write_checkpoint
from spark13b.ckpt.adapters import open_adapters, parts_of
from spark13b.config import Preset
from spark13b.errors import InputError
from spark13b.model.initialize import initial_value
from spark13b.model.names import adapter_shapes
from spark13b.progress import SILENT
from spark13b.run_folder import RunFolder
from spark13b.train.run import Job, check_start, train
from spark13b.train.training import Training
from train.small_run import small_preset, small_rows


def lora_preset(**changes: Any) -> Preset:
    """Adapters of two matrices with dropout, saved after three and six steps."""
    lora = {"lora__rank": 2, "lora__alpha": 16.0, "lora__dropout": 0.2, "schedule__warmup_steps": 0}
    lora["lora__targets"] = "q_proj|fc2"  # more of them take longer to compile
    return small_preset(task="lora", **{**lora, **changes})


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return small_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The weights of a model, as `rank_0/model.ckpt` in a folder."""
    model = lora_preset().model
    arrays = {name: initial_value(name, shape, model, 1) for name, shape in expected_shapes(model).items()}
    folder = tmp_path_factory.mktemp("base") / "weights"
    write_checkpoint(folder, arrays, member="rank_0/model.ckpt")
    return folder


@pytest.fixture(scope="module")
def finished(rows, base, tmp_path_factory) -> RunFolder:
    output = tmp_path_factory.mktemp("finished") / "run"
    before = (base / "rank_0" / "model.ckpt").read_bytes()
    train(Job(lora_preset(), rows, output, load=base))
    assert (base / "rank_0" / "model.ckpt").read_bytes() == before
    return RunFolder(output)


def losses(run: RunFolder) -> list[float]:
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def arrays(path: Path) -> dict[str, bytes]:
    with open_checkpoint(path) as opened:
        return {name: opened[name].tobytes() for name in opened}


def test_a_checkpoint_holds_adapters_alone_and_their_state(finished):
    preset = lora_preset()
    names = list(adapter_shapes(preset.model, preset.lora))
    folder = finished.checkpoint(6)
    file = folder / "rank_0" / "adapters.safetensors"
    assert sorted(path.name for path in folder.iterdir()) == ["optimizer.ckpt", "rank_0", "state.json"]
    with open_adapters(finished.path) as adapters, open_checkpoint(folder / "optimizer.ckpt") as state:
        assert (adapters.lora, list(adapters.tensors)) == (preset.lora, names)
        assert sorted(state) == sorted(f"adam_{one}.{name}" for name in names for one in "mv")
        assert all(np.any(adapters.tensors[name]) for name in names)  # every B has left 0
    assert file.stat().st_size < 4 * sum(map(np.prod, adapter_shapes(preset.model, preset.lora).values())) + 8000


def test_a_run_knows_its_base(finished, base, tmp_path):
    parts = parts_of(finished.path)
    assert (parts.base, parts.adapters) == (base / "rank_0" / "model.ckpt", finished.path)
    assert parts_of(base, finished.path).base == base


def test_a_resumed_run_has_the_same_losses_and_adapters_to_the_last_bit(finished, rows, tmp_path):
    again = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, again.path)
    shutil.rmtree(again.checkpoint(6))
    train(Job(lora_preset(), rows, again.path, resume=True))  # which finds the base by itself
    assert losses(again) == losses(finished)
    for part in ("rank_0", "optimizer.ckpt"):
        assert arrays(again.checkpoint(6) / part) == arrays(finished.checkpoint(6) / part)


def test_the_base_stays_and_dropout_of_adapters_acts(finished, rows, base, tmp_path):
    without = lora_preset(lora__dropout=0.0)
    run = RunFolder(tmp_path / "none")
    training = Training(Job(without, rows, run.path, load=base), rows, run, SILENT, lambda step: None)
    before = training.model.state()
    training.run()
    after = training.model.state()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert losses(run)[0] == pytest.approx(losses(finished)[0], rel=1e-5)  # B is 0 still
    assert losses(run)[1] != losses(finished)[1]


def test_another_base_or_another_lora_section_is_refused_on_resume(finished, rows, base, tmp_path):
    with open_checkpoint(base) as weights:
        norm = "transformer.transformer.layernorm.gamma"
        write_checkpoint(tmp_path / "other.ckpt", {**weights, norm: weights[norm] * 2})
    with pytest.raises(InputError, match="not the base model that the run began with"):
        train(Job(lora_preset(train__steps=9), rows, finished.path, load=tmp_path / "other.ckpt", resume=True))
    with pytest.raises(InputError, match=r"began with lora.alpha 16.0, now it is 32.0"):
        changed = lora_preset(train__steps=9).model_copy(
            update={"lora": lora_preset().lora.model_copy(update={"alpha": 32.0})}
        )
        train(Job(changed, rows, finished.path, resume=True))
    with pytest.raises(InputError, match=r"this run trains adapters[\s\S]*spark13b lora --resume"):
        check_start(Job(small_preset(), rows, finished.path, resume=True))


def test_without_a_base_nothing_is_begun(rows, tmp_path, finished):
    with pytest.raises(InputError, match=r"needs the weights of a base model[\s\S]*--load BASE"):
        train(Job(lora_preset(), rows, tmp_path / "run"))
    with pytest.raises(InputError, match="adapters only: load them beside a base"):
        train(Job(lora_preset(), rows, tmp_path / "run", load=finished.path))
    assert not (tmp_path / "run").exists()
