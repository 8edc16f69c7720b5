"""Adapters beside weights in the native library: prompts and steps beside NumPy's, with the adapters folded in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infer.small_model import random_texts, small_config
from model.numpy_model import NumpyModel, random_weights
from spark13b.config.model import SparkConfig
from spark13b.config.sections import LoraConfig
from spark13b.infer.decoding import READING
from spark13b.infer.native_decoder import NativeDecoder, native_model_of
from spark13b.infer.native_model import NativeAdapters, NativeModel
from spark13b.model import SparkForCausalLM
from spark13b.model.names import adapter_shapes
from spark13b.model.transformer import Setup
from spark13b.native.library import Library


def made(library: Library, lora: LoraConfig, **changes: Any) -> tuple[NativeModel, NumpyModel, dict[str, np.ndarray]]:
    """A model with adapters, its NumPy twin with W + B A alpha / rank, and the adapters."""
    config = small_config(9, 96, **changes)
    weights = random_weights(config, seed=5)
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    adapters = random_adapters(config, lora)
    folded = {name: array.astype(np.float64) for name, array in weights.items()}
    for name, b in adapters.items():
        if name.endswith("_b"):
            folded[name.replace("mindpet_delta_lora_b", "weight")] += (
                lora.alpha / lora.rank * b @ adapters[f"{name[:-1]}a"]
            )
    return NativeModel(config, arrays, library, NativeAdapters(lora, adapters)), NumpyModel(config, folded), adapters


def random_adapters(config: SparkConfig, lora: LoraConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(lora.rank)
    shapes = adapter_shapes(config, lora)
    return {name: (0.2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("targets", "rank"), [(".", 3), ("q_proj|v_proj|fc2", 1), ("k_proj|out_proj|fc[01]", 9)])
def test_prompts_of_any_length_and_steps_of_any_number_have_the_logits_of_folded_weights(
    native_library: Library, targets: str, rank: int
) -> None:
    model, twin, _ = made(native_library, LoraConfig(rank=rank, alpha=2.5, targets=targets))
    decoder = NativeDecoder(model, 9, 3, 80)
    texts = random_texts(8, 20, 80)
    for seat, (text, part) in enumerate(zip(texts, (5, 13, 70), strict=True), start=1):  # few rows, some, many
        expected = twin.logits(np.array([text]))[0]
        np.testing.assert_allclose(decoder.read(text[:part], 0), expected[part - 1], atol=1e-4)
        decoder.copy(READING, seat)
        decoder.read(text[:2], 0)
    for step in range(3):
        found = decoder.step(
            [1, 2, 3], [texts[0][5 + step], texts[1][13 + step], texts[2][70 + step]], [5 + step, 13 + step, 70 + step]
        )
        for text, part, row in zip(texts, (5, 13, 70), found, strict=True):
            np.testing.assert_allclose(row, twin.logits(np.array([text]))[0][part + step], atol=1e-4)


def test_in_bfloat16_prompts_round_both_sides_of_products_but_not_the_adapters(native_library: Library) -> None:
    model, twin, _ = made(native_library, LoraConfig(rank=3, alpha=2.5), compute_type="bfloat16")
    (text,) = random_texts(40)
    expected = twin.logits(np.array([text]))[0][-1]
    found = NativeDecoder(model, 9, 0, 40).read(text, 0)
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_a_model_that_mindspore_holds_answers_natively_with_its_adapters(native_library: Library) -> None:
    lora = LoraConfig(rank=3, alpha=2.5, targets="q_proj|fc1")
    of_library, _, adapters = made(native_library, lora)
    model = SparkForCausalLM(of_library.config, seed=None, setup=Setup(lora=lora))
    model.load_state(random_weights(of_library.config, seed=5))
    model.load_adapters(adapters)
    (text,) = random_texts(20)
    one, two = (NativeDecoder(native, 9, 0, 40) for native in (of_library, native_model_of(model, native_library)))
    np.testing.assert_array_equal(one.read(text, 0), two.read(text, 0))


def test_adapters_of_another_shape_are_refused(native_library: Library) -> None:
    lora = LoraConfig(rank=3, targets="fc2")
    model, _, adapters = made(native_library, lora)
    wrong = {name: array[:, :-1] for name, array in adapters.items()}
    with pytest.raises(ValueError, match="A of linear layer 6 must be float32 \\(3, 10\\)"):
        NativeModel(model.config, model.weights(), native_library, NativeAdapters(lora, wrong))
