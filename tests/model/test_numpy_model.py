"""The NumPy model that others are compared with: its gradients against differences of its own loss."""

from __future__ import annotations

import numpy as np
import pytest

from model.golden_config import golden_config
from model.numpy_model import NumpyModel, random_weights
from spark13b.config.model import SparkConfig


@pytest.mark.parametrize("window", [1, 3, 8])
def test_the_numpy_gradients_are_the_slopes_of_the_numpy_loss(window: int) -> None:
    config = SparkConfig(
        num_layers=2,
        hidden_size=12,
        num_heads=3,
        ffn_hidden_size=10,
        vocab_size=11,
        seq_length=8,
        sparse_local_size=window,
    )
    model = NumpyModel(config, random_weights(config, seed=window))
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 11, (2, 7)), rng.integers(0, 2, (2, 6)).astype(float)
    _, gradients = model.gradients(ids, mask)
    assert gradients.keys() == model.weights.keys()
    for name, weight in model.weights.items():
        # along one random direction: every number of the gradient takes part
        direction = rng.standard_normal(weight.shape)
        model.weights[name] = weight + 1e-5 * direction
        above = model.loss(ids, mask)
        model.weights[name] = weight - 1e-5 * direction
        below = model.loss(ids, mask)
        model.weights[name] = weight
        slope = (above - below) / 2e-5
        assert (gradients[name] * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8), name


def test_the_numpy_model_gives_the_originals_logits(
    golden: dict[str, np.ndarray], golden_weights: dict[str, np.ndarray]
) -> None:
    logits = NumpyModel(golden_config(), golden_weights).logits(golden["logits/ids"])
    assert np.abs(logits - golden["logits/logits"]).max() < 1e-4
