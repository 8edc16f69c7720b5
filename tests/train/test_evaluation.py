"""Evaluation against NumPy: sums over the targets that count, whatever the batches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from spark13b.ckpt import write_checkpoint
from spark13b.data.mindrecord import open_rows
from spark13b.errors import InputError
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.progress import SILENT
from spark13b.train.evaluation import Evaluator, evaluate
from spark13b.train.job import Evaluation
from train.small_run import small_preset, small_rows

BATCH = 5


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """A number of rows that the batch does not divide."""
    return small_rows(tmp_path_factory.mktemp("rows"), records=4)


@pytest.fixture(scope="module")
def table(rows):
    """ids and masks of all rows, (rows, T+1)"""
    ((ids, mask),) = open_rows(rows, 1000)
    assert len(ids) % BATCH and len(ids) > BATCH
    assert 0 < mask.sum() < mask.size
    return ids, mask


@pytest.fixture(scope="module")
def model() -> SparkForCausalLM:
    return SparkForCausalLM(small_preset().model, seed=3)


@pytest.fixture(scope="module")
def evaluator(model, rows, table) -> Evaluator:
    return Evaluator(model, rows, len(table[0]), BATCH, "target", SILENT)


def by_hand(model: SparkForCausalLM, ids: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Loss and accuracy with the masks of the targets."""
    logits, targets = model.logits(ids[:, :-1]).astype(np.float64), ids[:, 1:]
    largest = logits.max(-1)
    own = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    nll = np.log(np.exp(logits - largest[..., None]).sum(-1)) + largest - own
    return (nll * mask).sum() / mask.sum(), ((own >= largest) * mask).sum() / mask.sum()


def test_loss_and_accuracy_are_means_over_the_targets_that_count(model, evaluator, table):
    ids, mask = table
    found = evaluator.run()
    loss, accuracy = by_hand(model, ids, mask[:, 1:])
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert (found.accuracy, found.tokens, found.rows) == (pytest.approx(accuracy), mask[:, 1:].sum(), len(ids))
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_the_original_s_alignment_counts_the_original_s_targets(model, evaluator, table, monkeypatch):
    monkeypatch.setattr(evaluator, "alignment", "input")
    ids, mask = table
    found = evaluator.run()
    loss, _ = by_hand(model, ids, mask[:, :-1])
    assert (found.loss, found.tokens) == (pytest.approx(loss, rel=1e-5), mask[:, :-1].sum())


def test_a_token_that_the_model_is_sure_of_is_right(model, evaluator, table):
    found = evaluator.run()
    assert found.accuracy < 0.1  # of random weights
    model.load_state({name: np.zeros(one.shape, np.float32) for name, one in model.weights().items()})
    flat = evaluator.run()  # every logit is 0, and the target's is the largest with all others
    assert (flat.accuracy, flat.loss) == (1.0, pytest.approx(math.log(8000), rel=1e-5))


def test_a_wanted_stop_ends_an_evaluation_without_a_result(evaluator):
    asked = iter([False, True])
    assert evaluator.run(lambda: next(asked)) is None


def test_rows_without_a_target_that_counts_are_refused(evaluator, monkeypatch):
    monkeypatch.setattr("spark13b.train.evaluation.align", lambda mask, alignment: 0 * mask[:, 1:])
    with pytest.raises(InputError, match="no token of the rows counts"):
        evaluator.run()


def test_rows_and_weights_that_do_not_fit_are_refused(rows, tmp_path):
    preset = small_preset(model__seq_length=16)
    with pytest.raises(InputError, match="the rows hold 32 tokens, the model's context 16"):
        evaluate(preset, rows, tmp_path / "none")
    with pytest.raises(InputError, match="tokenizer of the rows has 8000 tokens, the model knows 100"):
        evaluate(small_preset(model__vocab_size=100), rows, tmp_path / "none")
    write_checkpoint(tmp_path / "other.ckpt", {"embedding": np.zeros((2, 2), np.float32)})
    with pytest.raises(InputError, match="embedding"):
        evaluate(small_preset(), rows, tmp_path / "other.ckpt")


def test_perplexity_stays_a_number_whatever_the_loss():
    assert math.isfinite(Evaluation(1e6, 0.0, 1, 1).perplexity)
