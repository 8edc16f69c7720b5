"""`SparkForCausalLM`: weights in and out, and what its inputs must be. No graph is compiled here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from model.golden_config import golden_config
from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.errors import InputError
from spark13b.model import SparkForCausalLM
from spark13b.model.loss import align
from spark13b.model.names import expected_shapes

Golden = dict[str, np.ndarray]

EMBEDDING = "transformer.embedding.word_embeddings.embedding_table"
LAYER = "transformer.transformer.layers.1"


@pytest.fixture(scope="module")
def model() -> SparkForCausalLM:
    return SparkForCausalLM(golden_config(), seed=None)


class TestLoadState:
    def test_state_gives_back_what_was_loaded(self, model: SparkForCausalLM, golden_weights: Golden) -> None:
        model.load_state(golden_weights)
        state = model.state()
        assert list(state) == list(expected_shapes(model.config))
        for name, array in state.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, golden_weights[name], err_msg=name)

    def test_missing_unknown_and_misshapen_names_are_told_in_one_error(
        self, model: SparkForCausalLM, golden_weights: Golden
    ) -> None:
        wrong = dict(golden_weights)
        del wrong[f"{LAYER}.attention.q_proj.bias"]
        wrong[f"{LAYER}.attention.q_prj.bias"] = np.zeros(64, np.float32)
        wrong[EMBEDDING] = np.zeros((511, 64), np.float32)
        with pytest.raises(InputError) as caught:
            model.load_state(wrong)
        lines = caught.value.what.splitlines()
        assert lines[0] == "the checkpoint does not fit the model"
        assert lines[1:3] == ["  1 missing:", f"    {LAYER}.attention.q_proj.bias"]
        assert lines[3] == "  1 unknown:"
        assert lines[4].startswith(f"    {LAYER}.attention.q_prj.bias (nearest known: ")
        assert lines[5:] == ["  1 of another shape:", f"    {EMBEDDING} is 511x64, the model's is 512x64"]
        assert caught.value.fix

    def test_a_refused_state_changes_nothing(self, model: SparkForCausalLM, golden_weights: Golden) -> None:
        model.load_state(golden_weights)
        wrong = {name: array + 1 for name, array in golden_weights.items()}
        del wrong[EMBEDDING]
        with pytest.raises(InputError):
            model.load_state(wrong)
        np.testing.assert_array_equal(model.state()[EMBEDDING], golden_weights[EMBEDDING])

    def test_masks_and_caches_of_the_originals_files_are_passed_over(
        self, model: SparkForCausalLM, golden_weights: Golden
    ) -> None:
        extra = {
            "transformer.transformer.layers.0.attention.slice_sparse_mask": np.zeros((64, 64), np.float16),
            "transformer.transformer.attention_mask": np.zeros((64, 64), np.float16),
            "transformer.transformer.layers.0.attention.key_past": np.zeros((1, 4, 64, 16), np.float16),
            "transformer.transformer.layers.0.attention.value_past": np.zeros((1, 4, 64, 16), np.float16),
        }
        model.load_state({name: array + 1 for name, array in golden_weights.items()} | extra)
        np.testing.assert_array_equal(model.state()[EMBEDDING], golden_weights[EMBEDDING] + 1)

    @pytest.mark.parametrize("type_", [np.float16, np.float64, np.int32, np.int64])
    def test_other_number_types_are_cast_to_the_parameters(
        self, type_: Any, model: SparkForCausalLM, golden_weights: Golden
    ) -> None:
        given = {name: (array * 100).astype(type_) for name, array in golden_weights.items()}
        model.load_state(given)
        for name, array in model.state().items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, given[name].astype(np.float32), err_msg=name)

    def test_parameters_of_half_width_round_what_is_loaded(self, golden_weights: Golden) -> None:
        config = golden_config(param_init_type="float16", compute_type="float16")
        model = SparkForCausalLM(config, seed=None)
        model.load_state(golden_weights)
        for name, array in model.state().items():
            half = "proj" in name or "mlp" in name  # embedding and norms stay float32
            assert array.dtype == (np.float16 if half else np.float32), name
            np.testing.assert_array_equal(array, golden_weights[name].astype(array.dtype), err_msg=name)

    def test_an_open_checkpoint_is_read_once_and_in_bfloat16_too(
        self, model: SparkForCausalLM, golden_weights: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        half = {name: array.astype(ml_dtypes.bfloat16) for name, array in golden_weights.items()}
        write_checkpoint(tmp_path / "weights.ckpt", half)
        with open_checkpoint(tmp_path / "weights.ckpt") as checkpoint:
            read, original = [], checkpoint.read
            monkeypatch.setattr(checkpoint, "read", lambda name: read.append(name) or original(name))
            model.load_state(checkpoint)
        state = model.state()
        assert read == list(state)
        for name, array in state.items():
            np.testing.assert_array_equal(array, half[name].astype(np.float32), err_msg=name)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 3], r"integers of shape \(B, T\) with T > 0, got int64 \(3,\)"),
        ([[[1]]], r"got int64 \(1, 1, 1\)"),
        ([[1.0, 2.0]], r"got float64 \(1, 2\)"),
        (np.zeros((2, 0), np.int32), r"got int32 \(2, 0\)"),
        (np.zeros((0, 2), np.int32), r"got int32 \(0, 2\)"),
        ([[1, 2], [3, -1]], "go from -1 to 3, the vocabulary is 0 to 511"),
        ([[512, 2]], "go from 2 to 512, the vocabulary is 0 to 511"),
        ([[1] * 65], "65 tokens are more than the context of 64"),
    ],
)
def test_logits_refuse_ids_that_the_model_cannot_read(ids: Any, message: str, model: SparkForCausalLM) -> None:
    with pytest.raises(ValueError, match=message):
        model.logits(ids)


@pytest.mark.parametrize(
    ("ids", "mask", "alignment", "message"),
    [
        ([[1]], None, "target", r"shape \(B, T\) with T > 1, got int64 \(1, 1\)"),
        ([[1] * 66], None, "target", "65 tokens are more than the context of 64"),
        ([[1, -2]], None, "target", "go from -2 to 1"),
        ([[1, 2, 3]], [[1, 1]], "target", r"loss_mask is \(1, 2\), input_ids are \(1, 3\)"),
        ([[1, 2, 3]], [1, 1, 1], "target", r"loss_mask is \(3,\), input_ids are \(1, 3\)"),
        ([[1, 2, 3]], [[1, 1, 1]], "output", "alignment must be 'target' or 'input', not 'output'"),
    ],
)
def test_loss_refuses_rows_masks_and_alignments_that_do_not_fit(
    ids: Any, mask: Any, alignment: Any, message: str, model: SparkForCausalLM
) -> None:
    with pytest.raises(ValueError, match=message):
        model.loss(ids, mask, alignment)


def test_the_mask_is_that_of_the_target_or_of_the_token_before_it() -> None:
    mask = np.array([[0, 0, 1, 1, 0]])
    assert align(mask, "target").tolist() == [[0, 1, 1, 0]]
    assert align(mask, "input").tolist() == [[0, 0, 1, 1]]


def test_attention_is_chosen_by_the_shape_and_the_reason_given() -> None:
    model = SparkForCausalLM(golden_config(seq_length=32768), seed=None)
    short, long = model.attention_choice(1, 100), model.attention_choice(1, 30000)
    assert (short.backend, short.reason) == ("plain", "the 4 x 128 x 128 scores fit in 64 MB")
    assert (long.backend, long.reason) == ("blocked", "32768 tokens go block by block, in memory linear in the length")


@pytest.mark.parametrize(
    "program", ["import spark13b.model", "from spark13b.model import SparkConfig", "import spark13b.infer"]
)
def test_the_packages_and_the_config_do_not_load_mindspore(program: str) -> None:
    check = f"{program}; import sys; assert 'mindspore' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import spark13b.model

    with pytest.raises(AttributeError, match="no attribute 'SparkForCasualLM'"):
        spark13b.model.SparkForCasualLM  # noqa: B018
