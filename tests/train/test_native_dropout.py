"""Dropout by the native library: MindSpore's masks, and so its numbers; the same bits however a step is divided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model.compiled import loss_and_gradients, native_gradients
from model.numpy_model import random_weights
from spark13b.config.model import SparkConfig
from spark13b.config.sections import LoraConfig
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.dropout import dropout_key
from spark13b.model.names import adapter_shapes
from spark13b.model.transformer import Setup
from spark13b.native.library import Library

KEY = dropout_key(3, 7, 5, 23)
LORA = LoraConfig(rank=3, alpha=2.5, dropout=0.3)


def config(**changes: Any) -> SparkConfig:
    """Two layers; no size is a multiple of a vector."""
    shape: dict[str, Any] = {"num_layers": 2, "hidden_size": 42, "num_heads": 3, "ffn_hidden_size": 94}
    return SparkConfig(**(shape | {"vocab_size": 71, "seq_length": 80, "sparse_local_size": 9} | changes))


def batch() -> tuple[np.ndarray, np.ndarray]:
    """ids (3, 24) and the mask of targets (3, 23)"""
    rng = np.random.default_rng(7)
    return rng.integers(0, 71, (3, 24)), rng.integers(0, 2, (3, 23)).astype(float)


def random_arrays(shape: SparkConfig, lora: LoraConfig | None) -> dict[str, np.ndarray]:
    """Weights and, with `lora`, adapters."""
    rng, arrays = np.random.default_rng(2), random_weights(shape, seed=4, deviation=0.1)
    adapters = adapter_shapes(shape, lora) if lora is not None else {}
    return arrays | {name: (0.2 * rng.standard_normal(size)).astype(np.float32) for name, size in adapters.items()}


@pytest.mark.parametrize("lora", [None, LORA], ids=["weights", "adapters"])
def test_loss_and_gradients_are_those_of_mindspores_operators_with_its_masks(
    lora: LoraConfig | None, native_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK13B_NATIVE", "0")
    shape = config(num_layers=1)
    arrays = random_arrays(shape, lora)
    model = SparkForCausalLM(shape, seed=None, setup=Setup(lora=lora, dropout=0.2))
    model.load_state({name: array for name, array in arrays.items() if "lora" not in name})
    if lora is not None:
        model.load_adapters({name: array for name, array in arrays.items() if "lora" in name})
    expected, slopes = loss_and_gradients(model, KEY)(*batch())
    kept, _ = native_gradients(native_library, shape, arrays, lora=lora and LoraConfig(rank=3, alpha=2.5))(*batch())
    assert abs(kept - expected) > 0.01
    for recompute in (False, True):
        loss, found = native_gradients(native_library, shape, arrays, recompute, lora, 0.2, KEY)(*batch())
        assert loss == pytest.approx(expected, rel=1e-5)
        assert list(found) == list(slopes)
        for name, slope in slopes.items():
            assert np.abs(found[name] - slope).max() < 1e-4 * np.abs(slope).max() + 1e-7, name


@pytest.mark.parametrize("compute_type", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["weights", "adapters"])
def test_threads_and_recomputation_change_no_bit_and_bfloat16_is_near(
    compute_type: str, lora: LoraConfig | None, native_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native_library.multiplier(compute_type) is None:
        pytest.skip("there is neither AMX nor a oneDNN")
    shape, found = config(compute_type=compute_type), []
    arrays = random_arrays(shape, lora)
    for threads, recompute in (("1", False), ("2", False), ("2", True)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(native_gradients(native_library, shape, arrays, recompute, lora, 0.1, KEY)(*batch()))
    for loss, gradients in found[1:]:
        assert loss == found[0][0]
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, found[0][1][name], err_msg=name)
    if compute_type == "bfloat16":
        loss, slopes = native_gradients(native_library, config(), arrays, False, lora, 0.1, KEY)(*batch())
        assert found[0][0] == pytest.approx(loss, rel=1e-2)
        errors = [np.linalg.norm(found[0][1][name] - slope) for name, slope in slopes.items()]
        assert np.linalg.norm(errors) < 0.05 * np.linalg.norm([np.linalg.norm(slope) for slope in slopes.values()])


def test_another_step_has_another_mask_and_adapters_may_be_dropped_alone(native_library: Library) -> None:
    shape = config()
    arrays = random_arrays(shape, LORA)
    losses = {
        native_gradients(native_library, shape, arrays, False, LORA, 0.0, dropout_key(3, step, 0, 23))(*batch())[0]
        for step in range(3)
    }
    assert len(losses) == 3
