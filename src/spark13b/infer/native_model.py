"""A model that the native library computes alone: its weights are arrays, and MindSpore is not loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spark13b.ckpt.adapters import Adapters
from spark13b.ckpt.dtypes import to_float32
from spark13b.ckpt.mapping import answering_parameters
from spark13b.ckpt.tensors import Checkpoint
from spark13b.config.model import SparkConfig
from spark13b.config.sections import LoraConfig
from spark13b.model.names import adapter_names, adapter_shapes, expected_shapes, is_embedding, match_adapters
from spark13b.model.native_choice import describe_library
from spark13b.model.native_weights import native_weights
from spark13b.native.library import Library
from spark13b.native.matrix import Matrix


@dataclass(frozen=True)
class NativeAdapters:
    """Adapters beside a model's linear layers, full name -> array."""

    lora: LoraConfig
    arrays: Mapping[str, np.ndarray]

    def pairs(self, config: SparkConfig) -> list[tuple[np.ndarray, np.ndarray] | None]:
        """A and B, with the scale, of each linear layer, float32; None where there is none."""
        scale, pairs = np.float32(self.lora.alpha / self.lora.rank), []
        for name, shape in expected_shapes(config).items():
            if len(shape) != 2 or is_embedding(name):
                continue
            a, b = adapter_names(name.removesuffix(".weight"))
            pairs.append((self._array(a), self._array(b) * scale) if a in self.arrays else None)
        return pairs

    def _array(self, name: str) -> np.ndarray:
        return np.ascontiguousarray(self.arrays[name], np.float32)


class NativeModel:
    """A model's parameters, full name -> array or matrix, as the library reads them: vectors float32."""

    def __init__(
        self,
        config: SparkConfig,
        parameters: Mapping[str, np.ndarray | Matrix],
        library: Library,
        adapters: NativeAdapters | None = None,
    ) -> None:
        self.config, self.library = config, library
        self.rounds = config.compute_type == "bfloat16"  # products of many rows, and caches, are then bfloat16
        self._parameters = {name: parameters[name] for name in expected_shapes(config)}
        pairs = [] if adapters is None else adapters.pairs(config)
        self.native = native_weights(config, self._parameters.values(), pairs)

    def weights(self) -> dict[str, np.ndarray | Matrix]:
        """Full name -> array or matrix, in the order of a complete checkpoint."""
        return dict(self._parameters)

    def describe(self) -> str:
        """What computes it, in a few words."""
        return describe_library(self.library, self.config.compute_type)


def read_adapters(adapters: Adapters, config: SparkConfig) -> NativeAdapters:
    """The adapters of a file, to be computed beside the weights. Raises InputError when they do not fit."""
    match_adapters(adapters.tensors.shapes(), config, adapters.lora, where=adapters.tensors.path)
    names = adapter_shapes(config, adapters.lora)
    return NativeAdapters(adapters.lora, {name: to_float32(adapters.tensors.read(name)) for name in names})


def open_native(
    base: Checkpoint, config: SparkConfig, library: Library, adapters: NativeAdapters | None = None
) -> NativeModel:
    """The model of a checkpoint whose names fit. Its weights stay when `base` is closed."""
    return NativeModel(config, answering_parameters(base, config), library, adapters)
