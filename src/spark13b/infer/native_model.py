"""A model that the native library computes alone: its weights are arrays, and MindSpore is not loaded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spark13b.ckpt.streams import read_into
from spark13b.ckpt.tensors import Checkpoint
from spark13b.config.model import SparkConfig
from spark13b.model.names import expected_shapes, is_embedding
from spark13b.model.native_choice import describe_library
from spark13b.model.rope_table import rope_table
from spark13b.native.library import Library
from spark13b.native.matrix import BFLOAT16, Matrix
from spark13b.native.weights import Weights

_TYPES = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16}


class NativeModel:
    """A model's parameters, full name -> array or matrix, as the library reads them: vectors float32."""

    def __init__(self, config: SparkConfig, parameters: Mapping[str, np.ndarray | Matrix], library: Library) -> None:
        self.config, self.library = config, library
        self.rounds = config.compute_type == "bfloat16"  # products of many rows, and caches, are then bfloat16
        self._parameters = {name: parameters[name] for name in expected_shapes(config)}
        cos, sin = (np.ascontiguousarray(table, np.float32) for table in rope_table(config))
        self.native = Weights(list(self._parameters.values()), cos, sin, config.num_heads, config.layernorm_epsilon)

    def weights(self) -> dict[str, np.ndarray | Matrix]:
        """Full name -> array or matrix, in the order of a complete checkpoint."""
        return dict(self._parameters)

    def describe(self) -> str:
        """What computes it, in a few words."""
        return describe_library(self.library, self.config.compute_type)


def read_native(base: Checkpoint, config: SparkConfig, library: Library) -> NativeModel:
    """The model of a checkpoint whose names fit: matrices in the compute type, the embedding in its own.

    Weights are read a piece at a time into their place, so that nothing is held twice.
    """
    parameters: dict[str, np.ndarray | Matrix] = {}
    for name, shape in expected_shapes(config).items():
        kind = config.embedding_init_type if is_embedding(name) else config.compute_type
        dtype = _TYPES[kind] if len(shape) == 2 else np.dtype(np.float32)
        array = np.empty(shape, dtype)
        read_into(base, name, array)
        parameters[name] = array
    return NativeModel(config, parameters, library)
