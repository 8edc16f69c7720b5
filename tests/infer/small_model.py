"""A small model with random weights, and its NumPy twin's logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.numpy_model import NumpyModel, random_weights
from spark13b.config.model import SparkConfig
from spark13b.infer.native_model import NativeModel
from spark13b.model import SparkForCausalLM
from spark13b.model.transformer import Setup
from spark13b.native.library import Library


def small_model(
    window: int, context: int, setup: Setup | None = None, **changes: Any
) -> tuple[SparkForCausalLM, NumpyModel]:
    """Two layers, three heads of 8, 37 tokens; the same weights in spark13b and in NumPy."""
    config = small_config(window, context, **changes)
    model = SparkForCausalLM(config, seed=None, setup=setup)
    weights = random_weights(config, seed=window)
    model.load_state(weights)
    return model, NumpyModel(config, weights)


def small_config(window: int, context: int, **changes: Any) -> SparkConfig:
    """The shape of these models."""
    shape: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 24,
        "num_heads": 3,
        "ffn_hidden_size": 20,
        "vocab_size": 37,
        "seq_length": context,
        "sparse_local_size": window,
    }
    return SparkConfig(**(shape | changes))


def native_model(library: Library, window: int, context: int, **changes: Any) -> tuple[NativeModel, NumpyModel]:
    """The same in the native library."""
    config = small_config(window, context, **changes)
    weights = random_weights(config, seed=window)
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    return NativeModel(config, arrays, library), NumpyModel(config, weights)


def random_texts(*lengths: int) -> list[list[int]]:
    """Texts of token ids 0 to 36; the pad id 0 is among them."""
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(0, 37, length).tolist() for length in lengths]
