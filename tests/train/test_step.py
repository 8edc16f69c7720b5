"""Whole training steps against an independent model and optimizer in NumPy float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from model.compiled import make_model
from model.numpy_model import NumpyModel, random_weights
from spark13b.config.model import SparkConfig
from spark13b.config.sections import OptimizerConfig
from spark13b.model import SparkForCausalLM
from spark13b.model.mesh import ALONE
from spark13b.train.optimizer import AdamW, corrected
from spark13b.train.placement import placement
from spark13b.train.step import Step
from train.numpy_adam import NumpyAdam, clipped, global_norm

CONFIG = SparkConfig(
    num_layers=1,
    hidden_size=16,
    num_heads=2,
    ffn_hidden_size=12,
    vocab_size=19,
    seq_length=13,
    sparse_local_size=5,
)
# With an epsilon near the gradients' own size the update is smooth in them; with 1e-8 it would be their sign wherever
# they are rounding errors. test_optimizer.py has the small one.
OPTIMIZER = OptimizerConfig(weight_decay=0.1, epsilon=1e-3)
RATES = (3e-2, 2e-2, 1e-2)

Run = Callable[..., tuple[float, float]]


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """ids (3, 14) and the mask of their targets"""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 19, (3, 14)), rng.integers(0, 2, (3, 13)).astype(float)


def make(clip_norm: float | None, guard: bool, accumulation: int = 1) -> tuple[SparkForCausalLM, AdamW, Run]:
    """A model, its optimizer, and a function that takes one step -> loss and gradient norm."""
    model = make_model(CONFIG, random_weights(CONFIG, seed=1))
    weights = model.weights()
    optimizer = AdamW(list(weights.values()), OPTIMIZER)
    placements = [placement(name, tuple(one.shape), ALONE, False) for name, one in weights.items()]
    step = Step(model, optimizer, placements, clip_norm, guard, accumulation)

    def run(seed: int, lr: float, updates: int, scale: float = 1.0) -> tuple[float, float]:
        rate, decay = corrected(OPTIMIZER, lr, updates)
        ids, mask = batch(seed)
        return step(ids.astype(np.int32), mask.astype(np.float32), rate, decay, scale, updates - 1)

    return model, optimizer, run


def check_three_steps(made: tuple[SparkForCausalLM, AdamW, Run], clip_norm: float | None, scale: float) -> list[float]:
    """Loss, norm, parameters and moments of three steps -> the norms."""
    model, optimizer, run = made
    twin = NumpyModel(CONFIG, random_weights(CONFIG, seed=1))
    adam = NumpyAdam(twin.weights, OPTIMIZER)
    norms = []
    for number, lr in enumerate(RATES):
        expected, gradients = twin.gradients(*batch(number))
        norms.append(global_norm(gradients))
        adam.update(clipped(gradients, clip_norm) if clip_norm is not None else gradients, lr)
        loss, norm = run(number, lr, number + 1, scale)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert norm == pytest.approx(norms[-1], rel=1e-4)
    for name, array in model.state().items():
        np.testing.assert_allclose(array, twin.weights[name], atol=2e-5, err_msg=name)
    for name, m, v in zip(model.weights(), optimizer.m, optimizer.v, strict=True):
        np.testing.assert_allclose(m.asnumpy(), adam.m[name], atol=1e-5 * np.abs(adam.m[name]).max() + 1e-7)
        np.testing.assert_allclose(v.asnumpy(), adam.v[name], atol=1e-4 * adam.v[name].max() + 1e-10)
    return norms


@pytest.mark.parametrize("native", ["", "0"], ids=["native where it is built", "MindSpore's operators"])
def test_three_steps_with_clipping_equal_numpy(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK13B_NATIVE", native)
    limit = 2.0
    norms = check_three_steps(make(limit, guard=False), limit, scale=1.0)
    assert min(norms) < limit < max(norms), f"choose another limit: some steps must be clipped and some not, {norms}"


class TestAccumulation:
    """Three parts of one row each are a batch of three rows, here with a loss scale and its guard."""

    @pytest.fixture(scope="class")
    def made(self) -> tuple[SparkForCausalLM, AdamW, Run]:
        return make(None, guard=True, accumulation=3)

    def test_three_steps_in_parts_equal_numpy_with_the_whole_batch(
        self, made: tuple[SparkForCausalLM, AdamW, Run]
    ) -> None:
        check_three_steps(made, None, scale=2.0**16)

    def test_sums_that_are_not_finite_are_forgotten(self, made: tuple[SparkForCausalLM, AdamW, Run]) -> None:
        model, optimizer, run = made
        before = everything(model, optimizer)
        _, norm = run(8, 1e-2, 5, float("inf"))
        assert not np.isfinite(norm)
        assert everything(model, optimizer) == before
        loss, norm = run(9, 1e-2, 5)
        assert np.isfinite(loss)
        assert np.isfinite(norm)


class TestGuard:
    """A step for a dynamic loss scale, without clipping."""

    @pytest.fixture(scope="class")
    def made(self) -> tuple[SparkForCausalLM, AdamW, Run]:
        return make(None, guard=True)

    def test_three_steps_with_a_loss_scale_equal_numpy(self, made: tuple[SparkForCausalLM, AdamW, Run]) -> None:
        check_three_steps(made, None, scale=2.0**16)

    @pytest.mark.parametrize("scale", [float("inf"), 3e38], ids=["infinite scale", "scale that overflows"])
    def test_gradients_that_are_not_finite_change_not_a_bit_and_the_norm_tells(
        self, scale: float, made: tuple[SparkForCausalLM, AdamW, Run]
    ) -> None:
        model, optimizer, run = made
        run(7, 1e-2, 4)  # so that the moments are not zero
        before = everything(model, optimizer)
        _, norm = run(8, 1e-2, 5, scale)
        assert not np.isfinite(norm)
        after = everything(model, optimizer)
        assert before.keys() == after.keys()
        for name, bits in before.items():
            assert after[name] == bits, name

    def test_one_weight_that_is_not_a_number_stops_every_update(
        self, made: tuple[SparkForCausalLM, AdamW, Run]
    ) -> None:
        model, optimizer, run = made
        state = model.state()
        broken = {name: array.copy() for name, array in state.items()}
        broken["transformer.transformer.layers.0.mlp.fc1.bias"][3] = np.nan
        model.load_state(broken)
        before = everything(model, optimizer)
        loss, norm = run(9, 1e-2, 5)
        assert np.isnan(loss)
        assert np.isnan(norm)
        after = everything(model, optimizer)
        broken_name = "transformer.transformer.layers.0.mlp.fc1.bias"
        assert {name for name in before if before[name] != after[name]} <= {broken_name}
        model.load_state(state)

    def test_a_state_taken_before_a_step_keeps_its_numbers(self, made: tuple[SparkForCausalLM, AdamW, Run]) -> None:
        model, _, run = made
        before = model.state()
        copies = {name: array.copy() for name, array in before.items()}
        run(12, 1e-2, 5)
        for name, array in model.state().items():
            np.testing.assert_array_equal(before[name], copies[name], err_msg=name)
            assert not np.array_equal(array, before[name]), name

    def test_the_next_finite_step_is_taken_as_if_nothing_had_been(
        self, made: tuple[SparkForCausalLM, AdamW, Run]
    ) -> None:
        model, optimizer, run = made
        start = model.state(), [state.asnumpy().copy() for state in (*optimizer.m, *optimizer.v)]
        run(10, 1e-2, 6)
        expected = everything(model, optimizer)
        model.load_state(start[0])
        for state, value in zip((*optimizer.m, *optimizer.v), start[1], strict=True):
            state.set_data(Tensor(value))
        run(11, 1e-2, 6, scale=float("inf"))
        run(10, 1e-2, 6)
        assert everything(model, optimizer) == expected


def everything(model: SparkForCausalLM, optimizer: AdamW) -> dict[str, bytes]:
    """All bits of parameters and moments."""
    arrays: dict[str, Any] = model.state()
    arrays |= {state.name: state.asnumpy() for state in (*optimizer.m, *optimizer.v)}
    return {name: array.tobytes() for name, array in arrays.items()}
