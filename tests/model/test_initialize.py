"""Random weights to train from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model.golden_config import golden_config
from spark13b.model import SparkForCausalLM
from spark13b.model.initialize import initial_value
from spark13b.model.names import expected_shapes


def all_values(seed: int, layers: int = 2) -> dict[str, np.ndarray]:
    config = golden_config(num_layers=layers)
    return {name: initial_value(name, shape, config, seed) for name, shape in expected_shapes(config).items()}


def test_norms_begin_as_the_identity_and_biases_as_zero() -> None:
    for name, value in all_values(0).items():
        assert value.dtype == np.float32
        if name.endswith(".gamma"):
            assert (value == 1).all(), name
        if name.endswith((".beta", ".bias")):
            assert (value == 0).all(), name


@pytest.mark.parametrize("layers", [1, 2, 8])
def test_matrices_are_normal_with_the_documented_deviations(layers: int) -> None:
    for name, value in all_values(3, layers).items():
        if value.ndim == 2:
            back = name.endswith(("out_proj.weight", "fc2.weight"))
            width = 64  # hidden_size of the golden model
            deviation = math.sqrt(2 / (5 * width)) / (math.sqrt(2 * layers) if back else 1)
            if name.endswith("embedding_table"):
                deviation = 1 / math.sqrt(width)
            numbers = value.astype(np.float64) / deviation
            # five standard errors of n normal numbers: 1/sqrt(n) for the mean, 1/sqrt(2n) for the deviation
            assert abs(numbers.mean()) < 5 / math.sqrt(value.size), name
            assert abs(numbers.std() - 1) < 5 / math.sqrt(2 * value.size), name
            assert abs((numbers**4).mean() - 3) < 5 * math.sqrt(96 / value.size), name  # not uniform, not clipped


def test_values_depend_on_seed_and_name_alone() -> None:
    first, again, other, deeper = all_values(1), all_values(1), all_values(2), all_values(1, layers=3)
    matrices = [name for name, value in first.items() if value.ndim == 2]
    for name in matrices:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name]), name
        scale = math.sqrt(3 / 2) if name.endswith(("out_proj.weight", "fc2.weight")) else 1
        np.testing.assert_allclose(deeper[name] * scale, first[name], rtol=1e-6)
    starts = {first[name][0, :8].tobytes() for name in matrices}
    assert len(starts) == len(matrices), "two parameters begin alike"


def test_a_model_with_a_seed_has_these_values_and_one_without_zeros() -> None:
    for name, value in SparkForCausalLM(golden_config(), seed=7).state().items():
        np.testing.assert_array_equal(value, all_values(7)[name], err_msg=name)
    assert not any(value.any() for value in SparkForCausalLM(golden_config(), seed=None).state().values())
