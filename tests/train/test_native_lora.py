"""LoRA by the native library: adapters' gradients beside NumPy and MindSpore, runs that go on with or without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.compiled import loss_and_gradients, native_gradients
from model.numpy_model import NumpyModel, random_weights
from spark13b.ckpt import expected_shapes, write_checkpoint
from spark13b.ckpt.adapters import open_adapters, write_adapters
from spark13b.config.model import SparkConfig
from spark13b.config.sections import LoraConfig
from spark13b.errors import InputError
from spark13b.model import native_choice
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.initialize import initial_value
from spark13b.model.names import adapter_shapes
from spark13b.model.native_training import choose_training
from spark13b.model.transformer import Setup
from spark13b.native.library import Found, Library
from spark13b.run_folder import RunFolder
from spark13b.train.evaluation import evaluate
from spark13b.train.run import Job, train
from train.small_run import Notes, small_preset, small_rows


def config(**changes: Any) -> SparkConfig:
    """Two layers; no size is a multiple of a vector."""
    shape: dict[str, Any] = {"num_layers": 2, "hidden_size": 42, "num_heads": 3, "ffn_hidden_size": 38}
    return SparkConfig(**(shape | {"vocab_size": 71, "seq_length": 80, "sparse_local_size": 9} | changes))


def random_adapters(shape: SparkConfig, lora: LoraConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(lora.rank)
    return {
        name: (0.2 * rng.standard_normal(size)).astype(np.float32) for name, size in adapter_shapes(shape, lora).items()
    }


def batch() -> tuple[np.ndarray, np.ndarray]:
    """ids (3, 24) and the mask of targets (3, 23)"""
    rng = np.random.default_rng(7)
    return rng.integers(0, 71, (3, 24)), rng.integers(0, 2, (3, 23)).astype(float)


def gradients_by_numpy(
    shape: SparkConfig, weights: dict[str, np.ndarray], adapters: dict[str, np.ndarray], lora: LoraConfig
) -> tuple[float, dict[str, np.ndarray]]:
    """Of the model with W + scale B A: dA = scale B^T dW and dB = scale dW A^T."""
    scale, wide = lora.alpha / lora.rank, {name: array.astype(np.float64) for name, array in adapters.items()}
    pairs = {
        name.removesuffix("mindpet_delta_lora_a") + "weight": (array, wide[f"{name[:-1]}b"])
        for name, array in wide.items()
        if name.endswith("_a")
    }
    merged = {name: array.astype(np.float64) for name, array in weights.items()}
    for name, (a, b) in pairs.items():
        merged[name] = merged[name] + scale * b @ a
    loss, slopes = NumpyModel(shape, merged).gradients(*batch())
    found = {}
    for name, (a, b) in pairs.items():
        linear = name.removesuffix("weight")
        found[f"{linear}mindpet_delta_lora_a"] = scale * b.T @ slopes[name]
        found[f"{linear}mindpet_delta_lora_b"] = scale * slopes[name] @ a.T
    return loss, found


@pytest.mark.parametrize(("targets", "rank"), [(".", 3), ("q_proj|v_proj", 5), ("out_proj|fc[12]", 1)])
def test_gradients_of_adapters_equal_numpys_for_odd_ranks_and_any_layers(
    native_library: Library, targets: str, rank: int
) -> None:
    shape, lora = config(), LoraConfig(rank=rank, alpha=2.5, targets=targets)
    weights, adapters = random_weights(shape, seed=3), random_adapters(shape, lora)
    expected, slopes = gradients_by_numpy(shape, weights, adapters, lora)
    loss, gradients = native_gradients(native_library, shape, weights | adapters, lora=lora)(*batch())
    assert loss == pytest.approx(expected, rel=1e-5)
    assert list(gradients) == list(adapter_shapes(shape, lora))
    for name, slope in slopes.items():
        assert np.abs(gradients[name] - slope).max() < 1e-4 * np.abs(slope).max() + 1e-6, name
    # both sides of products are rounded to 8 bits, scores of this model are large: as of weights, test_native_training
    half = shape.model_copy(update={"compute_type": "bfloat16"})
    loss, gradients = native_gradients(native_library, half, weights | adapters, lora=lora)(*batch())
    assert loss == pytest.approx(expected, rel=2e-2)
    errors = [np.linalg.norm(gradients[name] - slope) for name, slope in slopes.items()]
    assert np.linalg.norm(errors) < 0.2 * np.linalg.norm([np.linalg.norm(slope) for slope in slopes.values()])


def test_loss_and_gradients_of_adapters_are_those_of_mindspores_operators(
    native_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK13B_NATIVE", "0")
    shape, lora = config(num_layers=1), LoraConfig(rank=3, alpha=2.5)
    weights, adapters = random_weights(shape, seed=4, deviation=0.1), random_adapters(shape, lora)
    model = SparkForCausalLM(shape, seed=None, setup=Setup(lora=lora))
    assert model.library is None
    model.load_state(weights)
    model.load_adapters(adapters)
    expected, slopes = loss_and_gradients(model)(*batch())
    for recompute in (False, True):
        loss, found = native_gradients(native_library, shape, weights | adapters, recompute, lora)(*batch())
        assert loss == pytest.approx(expected, rel=1e-5)
        assert list(found) == list(slopes)
        for name, slope in slopes.items():
            assert np.abs(found[name] - slope).max() < 1e-4 * np.abs(slope).max() + 1e-7, name


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, file = small_preset().model, tmp_path_factory.mktemp("base") / "base.ckpt"
    write_checkpoint(
        file, {name: initial_value(name, shape, model, 1) for name, shape in expected_shapes(model).items()}
    )
    return file


PRESET: dict[str, Any] = {
    "task": "lora",
    "lora__rank": 3,
    "lora__alpha": 12.0,
    "lora__targets": "q_proj|fc2",  # MindSpore compiles more of them longer
    "schedule__warmup_steps": 0,
}


def curve(run: RunFolder) -> list[float]:
    return [record["loss"] for record in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in record]


def test_a_run_goes_on_with_or_without_the_library_and_says_which_computes(
    native_library: Library, rows: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(native_library, ""))
    preset, first, notes = small_preset(**PRESET), RunFolder(tmp_path / "first"), Notes()
    result = train(Job(preset, rows, first.path, load=base, eval_data=rows), notes)
    assert any("training by the native library (" in text for text in notes.said)
    assert result.evaluation is not None
    assert min(curve(first)) < max(curve(first)) - 0.05  # it has learned

    def go_on(name: str) -> RunFolder:
        """From the third step."""
        run = RunFolder(tmp_path / name)
        shutil.copytree(first.path, run.path, symlinks=True)
        shutil.rmtree(run.checkpoint(6))
        train(Job(preset, rows, run.path, resume=True), notes)
        return run

    again = go_on("again")
    assert curve(again) == curve(first)
    # adapters with dropout, which an evaluation does not have
    with open_adapters(first.path) as adapters:
        card = adapters.card.model_copy(update={"lora": adapters.lora.model_copy(update={"dropout": 0.5})})
        write_adapters(tmp_path / "dropped.safetensors", adapters.tensors, card)
    assert evaluate(preset, rows, base, adapter=tmp_path / "dropped.safetensors") == result.evaluation

    monkeypatch.setattr(native_choice, "find_library", lambda: Found(None, "it is not there"))
    other = go_on("by MindSpore")
    assert any(
        "training by MindSpore's operators: no native library (it is not there); attention: " in text
        for text in notes.said
    )
    np.testing.assert_allclose(curve(other), curve(first), rtol=1e-4)


def test_a_base_in_bfloat16_takes_half_the_memory_and_learns_as_one_in_float32(
    native_library: Library, rows: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(native_library, ""))
    half = {"model__param_init_type": "bfloat16", "model__embedding_init_type": "bfloat16"}
    curves = []
    for number, changes in enumerate(({}, half)):
        preset, run = (
            small_preset(**PRESET, **changes, model__compute_type="bfloat16"),
            RunFolder(tmp_path / str(number)),
        )
        train(Job(preset, rows, run.path, load=base))
        curves.append(curve(run))
    # biases and rows of the embedding are rounded, too, where the base is; products round weights in both runs
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3)
    model = SparkForCausalLM(preset.model, seed=None, setup=Setup(lora=preset.lora))
    stored = {str(one.dtype) for name, one in model.weights().items() if "norm" not in name}
    assert stored == {"BFloat16"}
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(None, "it is not there"))
    with pytest.raises(InputError, match="MindSpore has no bfloat16 matrix products on a CPU"):
        train(Job(preset, rows, tmp_path / "none", load=base))


def test_only_frozen_weights_may_be_bfloat16(native_library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(native_library, ""))
    assert choose_training(config(), Setup(lora=LoraConfig(dropout=0.1)))[0] is native_library
    half = config(param_init_type="bfloat16")
    assert choose_training(half, Setup(lora=LoraConfig()))[0] is native_library
    assert "trains float32 weights, these are bfloat16" in choose_training(half, Setup())[1]
