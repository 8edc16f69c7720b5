"""Layers that MindSpore's operators recompute: the same bits as kept ones, with dropout."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.dropout import dropout_key
from spark13b.model.mesh import join
from spark13b.train.step import make_setup, make_step
from train.parallel_cases import TOKENS, Case, batches, start_weights


def gradients(recompute: str) -> list[np.ndarray]:
    """Loss and gradients of two layers; not of whole steps, whose graphs take as long again to compile."""
    preset = Case("", values=("train.dropout=0.2", "model.num_layers=2", f"train.recompute={recompute}")).preset()
    model = SparkForCausalLM(preset.model, seed=0, setup=make_setup(preset, join(preset.parallel)))
    model.load_state(start_weights(preset.model))
    _, step = make_step(model, preset)
    ids, mask = batches()[0]
    inputs = (ids[:, :-1], ids[:, 1:], mask, dropout_key(0, 0, 0, TOKENS), mask.sum(), np.float32(1.0))
    loss, found = step.whole.gradients(*(Tensor(np.ascontiguousarray(array)) for array in inputs))
    return [loss.asnumpy(), *(gradient.asnumpy() for gradient in found)]


def test_gradients_of_recomputed_layers_have_the_bits_of_kept_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK13B_NATIVE", "0")
    kept, again = gradients("false"), gradients("true")
    assert len(kept) > 20
    for one, other in zip(kept, again, strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_array_equal(other, one)
