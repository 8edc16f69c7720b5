"""The optimizer against the original's numbers and the formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from model.numpy_model import NumpyModel
from spark13b.config.sections import OptimizerConfig
from spark13b.model import SparkForCausalLM
from spark13b.model.names import expected_shapes
from spark13b.train.optimizer import AdamW, corrected, is_decayed
from train.numpy_adam import NumpyAdam

Golden = dict[str, np.ndarray]


def number(value: float) -> Tensor:
    return Tensor(value, mindspore.float32)


class TestGolden:
    """`adam/...` of the golden file.

    Its losses belong to three updates that all use the gradients of the FIRST step. That was found by experiment: the
    frozen gradients through the formula give the file's losses to 1e-7 and its parameters to 1e-5, while with new
    gradients at every step the third loss differs by 4 percent. So the first gradients are fed three times here;
    test_step.py checks true steps against NumPy.
    """

    @pytest.fixture(scope="class")
    def losses(self, golden: Golden, golden_model: SparkForCausalLM, golden_weights: Golden) -> Iterator[list[float]]:
        """The loss before and after each update; the model keeps the last weights until the class is through."""
        ids, mask = golden["w32/ids"], golden["w32/loss_mask"]
        _, gradients = NumpyModel(golden_model.config, golden_weights).gradients(ids, mask[:, :-1])
        config = OptimizerConfig(weight_decay=0.1, clip_norm=None)
        optimizer = AdamW(list(golden_model.weights().values()), config)
        fed = tuple(Tensor(gradients[name].astype(np.float32)) for name in golden_model.weights())
        losses = [golden_model.loss(ids, mask, "input")]
        for updates in (1, 2, 3):
            rate, decay = corrected(config, 1e-3, updates)
            optimizer(fed, number(1), number(rate), number(decay))
            losses.append(golden_model.loss(ids, mask, "input"))
        yield losses
        golden_model.load_state(golden_weights)

    def test_losses_after_three_updates_are_the_originals(self, losses: list[float], golden: Golden) -> None:
        assert losses == pytest.approx(golden["adam/losses"].tolist(), rel=1e-5)

    def test_parameters_after_three_updates_are_the_originals(
        self, losses: list[float], golden: Golden, golden_model: SparkForCausalLM, golden_weights: Golden
    ) -> None:
        state = golden_model.state()
        names = [name.removeprefix("adam/after3/") for name in golden if name.startswith("adam/after3/")]
        assert len(names) == 3
        for name in names:
            after = golden[f"adam/after3/{name}"]
            assert np.abs(state[name] - after).max() < 2e-5, name
            assert np.abs(after - golden_weights[name]).max() > 1e-3, name


class TestUpdates:
    """Ten updates of parameters of both kinds and widths, one of which is skipped."""

    CONFIG = OptimizerConfig(weight_decay=0.5, beta1=0.8, beta2=0.9)
    SKIPPED = 4

    @pytest.fixture(scope="class")
    def both(self) -> tuple[AdamW, NumpyAdam, list[bytes]]:
        rng = np.random.default_rng(0)
        start = {
            "a.weight": rng.standard_normal((3, 4)),
            "b.bias": rng.standard_normal(5),
            "layer_norm.gamma": rng.standard_normal(4),
            "layer_norm.beta": rng.standard_normal(4),
            "half.weight": rng.standard_normal((4, 3)).astype(np.float16),
            "half.bias": rng.standard_normal(4).astype(np.float16),
        }
        ours = AdamW(
            [
                Parameter(Tensor(array if array.dtype == np.float16 else array.astype(np.float32)), name=name)
                for name, array in start.items()
            ],
            self.CONFIG,
        )
        twin = NumpyAdam({name: array.astype(np.float64) for name, array in start.items()}, self.CONFIG)
        frozen = []
        for call in range(10):
            lr = 0.01 * (call + 1)
            gradients = {name: rng.standard_normal(array.shape) for name, array in start.items()}
            rate, decay = corrected(self.CONFIG, lr, twin.updates + 1)
            if call == self.SKIPPED:
                frozen.append(everything(ours))
            fed = tuple(Tensor(gradient.astype(np.float32)) for gradient in gradients.values())
            ours(fed, number(call != self.SKIPPED), number(rate), number(decay))
            if call == self.SKIPPED:
                frozen.append(everything(ours))
                continue
            twin.update(gradients, lr)
            for name in start:
                if name.startswith("half"):  # stored in 16 bits after every update
                    twin.weights[name] = twin.weights[name].astype(np.float16).astype(np.float64)
        return ours, twin, frozen

    def test_parameters_and_moments_follow_the_formula(self, both: tuple[AdamW, NumpyAdam, list[bytes]]) -> None:
        ours, twin, _ = both
        for parameter, m, v in zip(ours.parameters, ours.m, ours.v, strict=True):
            name = parameter.name
            np.testing.assert_allclose(m.asnumpy(), twin.m[name], rtol=1e-5, atol=1e-7, err_msg=name)
            np.testing.assert_allclose(v.asnumpy(), twin.v[name], rtol=1e-5, err_msg=name)
            # of half width: two roundings that fall on different sides of a boundary are one 2^-11 apart
            tolerance = 2e-3 if name.startswith("half") else 1e-5
            np.testing.assert_allclose(parameter.asnumpy(), twin.weights[name], rtol=tolerance, atol=1e-6, err_msg=name)

    def test_state_is_float32_and_parameters_keep_their_type(self, both: tuple[AdamW, NumpyAdam, list[bytes]]) -> None:
        ours, _, _ = both
        assert {state.dtype for state in (*ours.m, *ours.v)} == {mindspore.float32}
        types = [parameter.dtype for parameter in ours.parameters]
        assert types == [mindspore.float32] * 4 + [mindspore.float16] * 2
        assert [state.name for state in ours.m[:2]] == ["adam_m.a.weight", "adam_m.b.bias"]

    def test_a_skipped_update_changes_not_a_bit(self, both: tuple[AdamW, NumpyAdam, list[bytes]]) -> None:
        before, after = both[2]
        assert before == after


def test_master_weights_keep_what_sixteen_bits_round_away() -> None:
    config = OptimizerConfig(master_weights=True)
    start = np.linspace(1.0, 1.5, 12).reshape(4, 3).astype(np.float16)
    optimizer = AdamW([Parameter(Tensor(start), name="half.weight")], config)
    twin = NumpyAdam({"half.weight": start.astype(np.float64)}, config)
    gradient = np.where(np.arange(12).reshape(4, 3) % 2, 1.0, -1.0)
    for update in range(1, 13):  # each step is a tenth of what float16 can tell from 1
        rate, decay = corrected(config, 1e-4, update)
        optimizer((Tensor(gradient.astype(np.float32)),), number(1), number(rate), number(decay))
        twin.update({"half.weight": gradient}, 1e-4)
    master = optimizer.masters[0]
    assert master.name == "master.half.weight"
    assert master.dtype == mindspore.float32
    np.testing.assert_allclose(master.asnumpy(), twin.weights["half.weight"], rtol=1e-6)
    np.testing.assert_array_equal(
        optimizer.parameters[0].asnumpy(), master.asnumpy().astype(np.float16), "the parameter is its master, rounded"
    )
    assert (optimizer.parameters[0].asnumpy() != start).all()
    finer = start.astype(np.float32) + 1e-5
    optimizer.take_masters({"half.weight": finer})
    np.testing.assert_array_equal(master.asnumpy(), finer)


def everything(optimizer: AdamW) -> bytes:
    """All bits of parameters and moments."""
    return b"".join(array.asnumpy().tobytes() for array in (*optimizer.parameters, *optimizer.m, *optimizer.v))


@pytest.mark.parametrize("updates", [1, 2, 10, 1000, 300_000])
@pytest.mark.parametrize("config", [{}, {"beta1": 0.0, "beta2": 0.5, "weight_decay": 0.3}, {"weight_decay": 0.1}])
def test_the_corrected_rate_and_decay_are_the_formulas(updates: int, config: dict[str, Any]) -> None:
    optimizer = OptimizerConfig(**config)
    rate, decay = corrected(optimizer, 3e-4, updates)
    expected = 3e-4 * (1 - optimizer.beta2**updates) ** 0.5 / (1 - optimizer.beta1**updates)
    assert rate == pytest.approx(expected)
    assert rate * decay == pytest.approx(3e-4 * optimizer.weight_decay)


def test_the_correction_vanishes_late() -> None:
    assert corrected(OptimizerConfig(weight_decay=0.1), 3e-4, 10**6) == pytest.approx((3e-4, 0.1))


def test_a_learning_rate_of_zero_changes_nothing() -> None:
    assert corrected(OptimizerConfig(weight_decay=0.1), 0.0, 1) == (0.0, 0.0)


def test_matrices_and_the_embedding_are_decayed_norms_and_biases_not(golden_model: SparkForCausalLM) -> None:
    decayed = {name for name in expected_shapes(golden_model.config) if is_decayed(name)}
    assert decayed == {name for name, shape in expected_shapes(golden_model.config).items() if len(shape) == 2}
    optimizer = AdamW(list(golden_model.weights().values()), OptimizerConfig())
    own = {parameter.name for parameter, yes in zip(optimizer.parameters, optimizer.decayed, strict=True) if yes}
    assert len(own) == len(decayed) == 15
    assert not any(name.endswith(("gamma", "beta", "bias")) for name in own)
