"""Slices that come with MindSpore's strategy files, cut here by hand as the files say, are joined by MindSpore."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ckpt_samples import same_bytes

from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.ckpt.strategies import merge_by_strategy
from spark13b.errors import InputError

RNG = np.random.default_rng(4)
ROWS = RNG.normal(size=(16, 6)).astype(np.float32)
COLUMNS = RNG.normal(size=(6, 8)).astype(ml_dtypes.bfloat16)
WHOLE = RNG.normal(size=(6,)).astype(np.float16)
SHARDED = RNG.normal(size=(16, 4)).astype(np.float32)


def _layout(devices: list[int], tensor_map: list[int], size: int = 0, step: int = 0) -> dict:
    return {
        "dev_matrix": devices,
        "tensor_map": tensor_map,
        "param_split_shape": [],
        "indices_offset": [],
        "field": 0,
        "opt_weight_shard_size": size,
        "opt_weight_shard_step": step,
    }


def _strategy(path: Path, layouts: dict, stage: int = 0) -> Path:
    items = {"node": {"stage": stage, "parallel_strategy": []}}
    path.write_text(json.dumps({"current_stage": 0, "parallel_strategy_item": items, "parallel_layout_item": layouts}))
    return path


@pytest.fixture
def distributed(tmp_path: Path) -> tuple[Path, Path]:
    """Eight ranks, dp 2 x mp 4: rows over mp, columns over mp, a vector everywhere, rows over mp and then dp."""
    for rank in range(8):
        group, number = divmod(rank, 4)
        tensors = {
            "rows": ROWS[4 * number : 4 * number + 4],
            "columns": COLUMNS[:, 2 * number : 2 * number + 2],
            "whole": WHOLE,
            "sharded": SHARDED[4 * number + 2 * group : 4 * number + 2 * group + 2],
            "global_step": np.array([300001], np.int32),
        }
        write_checkpoint(tmp_path / f"run/rank_{rank}/net-1_10.ckpt", tensors)
    layouts = {
        "rows": _layout([2, 4], [0, -1]),
        "columns": _layout([2, 4], [-1, 0]),
        "whole": _layout([2, 4], [-1]),
        "sharded": _layout([2, 4], [0, -1], size=2, step=4),
    }
    return tmp_path / "run", _strategy(tmp_path / "strategy.json", layouts)


@pytest.mark.parametrize("batch", [1, 64 << 20])
def test_slices_are_joined_as_the_strategy_says(
    batch: int, tmp_path: Path, distributed: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark13b.ckpt.strategies._BATCH", batch)
    folder, strategy = distributed
    result = merge_by_strategy(folder, [strategy], tmp_path / "out", "ckpt")
    assert result.written.files == (tmp_path / "out" / "rank_0" / "model.ckpt",)
    expected = {"rows": ROWS, "columns": COLUMNS, "whole": WHOLE, "sharded": SHARDED}
    with open_checkpoint(tmp_path / "out") as merged:
        assert all(same_bytes(merged[name], array) for name, array in expected.items())
        assert merged["global_step"] == [300001]
    assert not list(tmp_path.glob(".joining*"))


def test_mindspore_joins_all_at_once_to_the_same(tmp_path: Path, distributed: tuple) -> None:
    import mindspore

    folder, strategy = distributed
    ranks = mindspore.rank_list_for_transform(0, str(strategy), None)
    files = {rank: str(folder / f"rank_{rank}" / "net-1_10.ckpt") for rank in ranks}
    mindspore.transform_checkpoint_by_rank(0, files, str(tmp_path / "theirs.ckpt"), str(strategy), None)
    merge_by_strategy(folder, [strategy], tmp_path / "ours.ckpt", "ckpt")
    with open_checkpoint(tmp_path / "theirs.ckpt") as theirs, open_checkpoint(tmp_path / "ours.ckpt") as ours:
        assert set(ours) == set(theirs)
        assert all(same_bytes(ours[name], theirs[name]) for name in theirs)


def test_the_stages_of_a_pipeline_are_joined(tmp_path: Path) -> None:
    """Two stages of two ranks; each stage has its own strategy file and parameters."""
    for rank in range(4):
        stage, number = divmod(rank, 2)
        tensor = (ROWS, SHARDED)[stage][8 * number : 8 * number + 8]
        write_checkpoint(tmp_path / f"run/rank_{rank}/net.ckpt", {f"stage{stage}": tensor})
    strategies = [
        _strategy(tmp_path / f"s{stage}.json", {f"stage{stage}": _layout([2], [0, -1])}, stage) for stage in (0, 1)
    ]
    merge_by_strategy(tmp_path / "run", strategies, tmp_path / "out.safetensors", "safetensors")
    with open_checkpoint(tmp_path / "out.safetensors") as merged:
        assert same_bytes(merged["stage0"], ROWS) and same_bytes(merged["stage1"], SHARDED)


def test_what_cannot_be_joined_is_said(tmp_path: Path, distributed: tuple) -> None:
    folder, strategy = distributed
    with pytest.raises(InputError, match="no such strategy file"):
        merge_by_strategy(folder, [tmp_path / "none.json"], tmp_path / "out", "ckpt")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(InputError, match="names no parameters"):
        merge_by_strategy(folder, [tmp_path / "empty.json"], tmp_path / "out", "ckpt")
    (folder / "rank_3" / "net-1_10.ckpt").rename(folder / "rank_3" / "net-1_9.ckpt")
    (folder / "rank_3" / "net-1_10.ckpt").write_bytes((folder / "rank_3" / "net-1_9.ckpt").read_bytes())
    with pytest.raises(InputError, match="expected one checkpoint file, found 2"):
        merge_by_strategy(folder, [strategy], tmp_path / "out", "ckpt")
    for file in folder.glob("rank_3/*"):
        file.unlink()
    (folder / "rank_3").rmdir()
    with pytest.raises(InputError, match="slices that are missing: rank_3"):
        merge_by_strategy(folder, [strategy], tmp_path / "out", "ckpt")
    assert not (tmp_path / "out").exists()
