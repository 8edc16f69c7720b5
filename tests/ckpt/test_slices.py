"""Cut and join for several layouts, and re-cut between them; each rank holds what its device needs."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from ckpt_samples import same_bytes

from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.ckpt.layout import MANIFEST, Layout
from spark13b.ckpt.slices import write_slices
from spark13b.errors import InputError

LAYOUTS = (Layout(2, 4), Layout(1, 8), Layout(4, 2, optimizer_shard=True))
LAYER = "transformer.transformer.layers.1."


@pytest.fixture
def training_state(tmp_path: Path, golden_weights: dict) -> tuple[Path, dict]:
    """Weights, adapters, Adam's state and counters, in one file as the trainer saves them."""
    rng = np.random.default_rng(1)
    tensors = dict(golden_weights)
    for linear, rows, columns in (("attention.q_proj", 64, 64), ("mlp.fc2", 64, 128)):
        tensors[f"{LAYER}{linear}.mindpet_delta_lora_a"] = rng.normal(size=(3, columns)).astype(np.float32)
        tensors[f"{LAYER}{linear}.mindpet_delta_lora_b"] = rng.normal(size=(rows, 3)).astype(np.float32)
    for moment in ("adam_m", "adam_v"):
        tensors |= {f"{moment}.{name}": rng.normal(size=a.shape).astype(np.float32) for name, a in tensors.items()}
    tensors["global_step"] = np.array(300001, np.int32)
    tensors["adam_m.odd"] = np.arange(7, dtype=np.float32)  # 7 rows: stays whole
    write_checkpoint(tmp_path / "whole.ckpt", tensors, metadata={"run": "test"})
    return tmp_path / "whole.ckpt", tensors


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_split_and_merge_give_back_every_bit(layout: Layout, tmp_path: Path, training_state: tuple) -> None:
    whole, tensors = training_state
    with open_checkpoint(whole) as source:
        written = write_slices(tmp_path / "slices", source, layout)
    assert len(written.files) == layout.devices + 1 and all(file.is_file() for file in written.files)
    with open_checkpoint(tmp_path / "slices") as merged:
        assert merged.format == "slices" and list(merged) == list(tensors) and merged.metadata == {"run": "test"}
        assert all(
            same_bytes(merged[name], np.ascontiguousarray(array)) for name, array in tensors.items() if array.shape
        )
        assert merged["global_step"] == 300001


@pytest.mark.parametrize(("first", "second"), list(permutations(LAYOUTS, 2)), ids=str)
def test_a_layout_is_cut_anew_into_another(
    first: Layout, second: Layout, tmp_path: Path, training_state: tuple
) -> None:
    whole, _ = training_state
    with open_checkpoint(whole) as source:
        write_slices(tmp_path / "first", source, first)
        write_slices(tmp_path / "direct", source, second)
    with open_checkpoint(tmp_path / "first") as slices:
        write_slices(tmp_path / "second", slices, second)
    for rank in range(second.devices):
        file = f"rank_{rank}/model.ckpt"
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / "direct" / file).read_bytes()
    assert (tmp_path / "second" / MANIFEST).read_bytes() == (tmp_path / "direct" / MANIFEST).read_bytes()


def test_each_rank_holds_the_part_that_its_device_needs(tmp_path: Path, golden_weights: dict) -> None:
    write_checkpoint(tmp_path / "whole.ckpt", golden_weights)
    with open_checkpoint(tmp_path / "whole.ckpt") as source:
        write_slices(tmp_path / "slices", source, Layout(2, 4))
    with open_checkpoint(tmp_path / "slices" / "rank_6" / "model.ckpt") as rank:  # group 1, number 2 of 4
        for name, array in golden_weights.items():
            part = rank[name]
            if name.endswith(("embedding_table", "q_proj.weight", "fc0.weight", "fc1.bias", "k_proj.bias")):
                rows = array.shape[0] // 4
                assert np.array_equal(part, array[2 * rows : 3 * rows]), name
            elif name.endswith(("out_proj.weight", "fc2.weight")):
                columns = array.shape[1] // 4
                assert np.array_equal(part, array[:, 2 * columns : 3 * columns]), name
            elif name.endswith(("gamma", "beta", "out_proj.bias", "fc2.bias")):
                assert np.array_equal(part, array), name


def test_a_matrix_product_over_the_slices_equals_the_whole(tmp_path: Path, golden_weights: dict) -> None:
    """The feed-forward block computed by four ranks, their outputs added, as Megatron does."""
    write_checkpoint(tmp_path / "whole.ckpt", golden_weights)
    with open_checkpoint(tmp_path / "whole.ckpt") as source:
        write_slices(tmp_path / "slices", source, Layout(1, 4))
    x = np.random.default_rng(2).normal(size=(5, 64))

    def block(weights: object) -> np.ndarray:
        hidden = np.maximum(x @ weights[f"{LAYER}mlp.fc0.weight"].T + weights[f"{LAYER}mlp.fc0.bias"], 0)
        return (hidden * (x @ weights[f"{LAYER}mlp.fc1.weight"].T)) @ weights[f"{LAYER}mlp.fc2.weight"].T

    parts = sum(block(open_checkpoint(tmp_path / f"slices/rank_{rank}/model.ckpt")) for rank in range(4))
    np.testing.assert_allclose(parts, block(golden_weights), rtol=1e-6)


def test_optimizer_shards_cut_adam_s_state_and_nothing_else(tmp_path: Path, training_state: tuple) -> None:
    whole, tensors = training_state
    with open_checkpoint(whole) as source:
        write_slices(tmp_path / "slices", source, Layout(4, 2, optimizer_shard=True))
    with open_checkpoint(tmp_path / "slices" / "rank_5" / "model.ckpt") as rank:  # group 2, number 1
        weight = f"{LAYER}mlp.fc2.weight"
        assert np.array_equal(rank[weight], tensors[weight][:, 64:])
        assert np.array_equal(rank[f"adam_m.{weight}"], tensors[f"adam_m.{weight}"][32:48, 64:])
        assert np.array_equal(rank["adam_m.odd"], tensors["adam_m.odd"])


def test_ranks_with_the_same_content_share_one_file_on_the_disk(tmp_path: Path, weights: Path) -> None:
    with open_checkpoint(weights) as source:
        write_slices(tmp_path / "slices", source, Layout(4, 2))
    inodes = {(tmp_path / f"slices/rank_{rank}/model.ckpt").stat().st_ino for rank in range(8)}
    assert len(inodes) == 2


def test_mindspore_loads_a_slice(tmp_path: Path, weights: Path) -> None:
    import mindspore

    with open_checkpoint(weights) as source:
        write_slices(tmp_path / "slices", source, Layout(1, 2))
    loaded = mindspore.load_checkpoint(str(tmp_path / "slices" / "rank_1" / "model.ckpt"))
    assert loaded[f"{LAYER}attention.q_proj.weight"].shape == (32, 64)


def test_a_size_that_cannot_be_divided_is_refused_before_anything_is_written(tmp_path: Path, weights: Path) -> None:
    with open_checkpoint(weights) as source, pytest.raises(InputError, match="does not divide axis 0") as caught:
        write_slices(tmp_path / "slices", source, Layout(1, 3))
    assert "divisor of 512" in caught.value.message() and not (tmp_path / "slices").exists()


def test_slices_that_do_not_belong_together_are_refused(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "slices"
    with open_checkpoint(weights) as source:
        write_slices(folder, source, Layout(1, 4))
    (folder / "rank_3" / "model.ckpt").rename(tmp_path / "away.ckpt")
    with pytest.raises(InputError, match="rank 3 of 4 is missing"):
        open_checkpoint(folder)
    (folder / "rank_3" / "model.ckpt").write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match="the manifest says float32"):
        open_checkpoint(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["model_paralel"] = manifest.pop("model_parallel")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="manifest of the slices is broken: model_parallel"):
        open_checkpoint(folder)
