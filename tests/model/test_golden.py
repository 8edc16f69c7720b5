"""Logits, losses and gradients against the original's (tests/golden/reference.npz), whole and in blocks.

The tolerances are those of shared/SPEC.md, section 13. Blocks of 13 queries divide neither the 32 tokens nor the
window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model.compiled import Gradients, loss_and_gradients, make_model, native_gradients
from model.golden_config import golden_config
from model.numpy_model import NumpyModel
from spark13b.model import SparkForCausalLM
from spark13b.model.loss import align

Golden = dict[str, np.ndarray]


def test_whole_attention_gives_the_originals_logits(golden: Golden, golden_model: SparkForCausalLM) -> None:
    logits = golden_model.logits(golden["logits/ids"])
    assert logits.dtype == np.float32
    assert np.abs(logits - golden["logits/logits"]).max() < 1e-4


def test_attention_in_blocks_gives_the_originals_logits(
    golden: Golden, golden_weights: Golden, operator_by_operator: None
) -> None:
    model = make_model(golden_config(), golden_weights, block=13)
    assert np.abs(model.logits(golden["logits/ids"]) - golden["logits/logits"]).max() < 1e-4


class TestTraining:
    """Window 8 in blocks, window 32 whole; test_against_numpy.py crosses windows and blocks."""

    @pytest.fixture(
        scope="class",
        params=[(8, False), (32, False), (8, True), (32, True)],
        ids=["window 8, blocks of 13", "window 32, whole", "window 8, native", "window 32, native"],
    )
    def case(self, request: Any, golden: Golden, golden_weights: Golden) -> tuple[Golden, Gradients, int]:
        window, native = request.param
        prefix = f"w{window}/"
        part = {name.removeprefix(prefix): array for name, array in golden.items() if name.startswith(prefix)}
        if native:
            library = request.getfixturevalue("native_library")
            config = golden_config(sparse_local_size=window)
            return part, native_gradients(library, config, golden_weights), window
        if window == 32:
            return part, request.getfixturevalue("golden_gradients"), window
        model = make_model(golden_config(sparse_local_size=window), golden_weights, block=13)
        return part, loss_and_gradients(model), window

    def test_the_pretraining_loss_is_the_originals(self, case: tuple[Golden, Gradients, int]) -> None:
        part, compute, _ = case
        loss, _ = compute(part["ids"], np.ones((2, 32)))
        assert loss == pytest.approx(float(part["loss_pretrain"]), rel=1e-5)

    def test_loss_and_gradient_norms_aligned_by_input_are_the_originals(
        self, case: tuple[Golden, Gradients, int]
    ) -> None:
        part, compute, _ = case
        loss, gradients = compute(part["ids"], align(part["loss_mask"], "input"))
        assert loss == pytest.approx(float(part["loss_sft"]), rel=1e-5)
        norms = dict(zip(part["grad_norm_names"].tolist(), part["grad_norms"].tolist(), strict=True))
        assert norms.keys() == gradients.keys()
        found = {name: np.linalg.norm(gradient.astype(np.float64)) for name, gradient in gradients.items()}
        assert found == pytest.approx(norms, rel=1e-3)

    def test_loss_and_gradients_aligned_by_target_are_those_of_numpy(
        self, case: tuple[Golden, Gradients, int], golden_weights: Golden
    ) -> None:
        part, compute, window = case
        mask = part["loss_mask"][:, 1:]
        reference = NumpyModel(golden_config(sparse_local_size=window), golden_weights)
        expected, slopes = reference.gradients(part["ids"], mask)
        loss, gradients = compute(part["ids"], mask)
        assert loss == pytest.approx(expected, rel=1e-5)
        for name, slope in slopes.items():
            assert np.abs(gradients[name] - slope).max() < 1e-4 * np.abs(slope).max() + 1e-7, name


def test_the_models_loss_aligns_the_mask_as_asked(
    golden: Golden, golden_model: SparkForCausalLM, golden_weights: Golden
) -> None:
    ids, mask = golden["w32/ids"], golden["w32/loss_mask"]
    by_target = NumpyModel(golden_config(), golden_weights).loss(ids, mask[:, 1:])
    assert golden_model.loss(ids) == pytest.approx(float(golden["w32/loss_pretrain"]), rel=1e-5)
    assert golden_model.loss(ids, mask, "input") == pytest.approx(float(golden["w32/loss_sft"]), rel=1e-5)
    assert golden_model.loss(ids, mask) == pytest.approx(by_target, rel=1e-5)
    assert abs(by_target - float(golden["w32/loss_sft"])) > 1e-2, "the alignments differ in this text"


def test_a_row_without_anything_to_learn_has_loss_zero(golden: Golden, golden_model: SparkForCausalLM) -> None:
    assert golden_model.loss(golden["w32/ids"], np.zeros((2, 33))) == 0.0


def test_the_loss_of_a_short_row_is_not_changed_by_its_padding(
    golden: Golden, golden_model: SparkForCausalLM, golden_weights: Golden
) -> None:
    ids, mask = golden["w32/ids"][:, :22], golden["w32/loss_mask"][:, :22]
    expected = NumpyModel(golden_config(), golden_weights).loss(ids, mask[:, 1:])
    assert golden_model.loss(ids, mask) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tokens", [17, 31])
def test_right_padding_to_a_bucket_changes_no_logits(
    tokens: int, golden: Golden, golden_model: SparkForCausalLM
) -> None:
    ids = golden["logits/ids"]
    padded = golden_model.logits(ids[:, :tokens])
    assert padded.shape == (2, tokens, 512)
    # the same graph, other tokens after them: what comes later reaches nothing, not even by rounding
    np.testing.assert_array_equal(padded, golden_model.logits(ids)[:, :tokens])


def test_logits_in_float16_stay_within_its_rounding(
    golden: Golden, golden_weights: Golden, operator_by_operator: None
) -> None:
    """float16 rounds with a relative error of 2^-11 = 4.9e-4; norms, softmax and stored weights stay in float32.

    The output is a product over a normed state, so the logits' own deviation is the scale of the error. Some ten
    rounded products follow each other, whose errors add like random ones: sqrt(10) * 2^-11 = 1.5e-3 of that scale on
    average. The greatest of 32768 random errors is five deviations away, and rows of the embedding that are twice as
    long as others make twice the error: 2e-2 is not to be passed.
    """
    model = make_model(golden_config(compute_type="float16"), golden_weights)
    logits, expected = model.logits(golden["logits/ids"]), golden["logits/logits"]
    assert logits.dtype == np.float32
    error = np.abs(logits - expected) / expected.std()
    assert error.mean() < 1.5e-3
    assert error.max() < 2e-2
    assert error.max() > 1e-5, "float16 was not used"
