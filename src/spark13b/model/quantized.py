"""Adapters beside a quantised base: the only tensors are the adapters; the base lies where its file is mapped."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import Parameter, Tensor

from spark13b.config.model import SparkConfig
from spark13b.model.causal_lm import SparkForCausalLM, begin, fill_adapters
from spark13b.model.device import device
from spark13b.model.names import adapter_shapes
from spark13b.model.native_training import NativeParameters, choose_training
from spark13b.model.native_weights import native_weights
from spark13b.model.transformer import Setup
from spark13b.native.matrix import Matrix


class QuantizedLora:
    """A model that the native library alone trains and measures: it has what training asks `SparkForCausalLM` for.

    `base`: full name -> array or matrix, in a checkpoint's order, vectors float32; none of it is copied, and nothing of
    it is MindSpore's. With `setup` it has adapters, all zeros until they are begun or loaded, or none, to be measured.
    """

    def __init__(self, config: SparkConfig, base: Mapping[str, np.ndarray | Matrix], setup: Setup) -> None:
        device()  # graph mode, before the first cell is made
        self.config, self.setup = config, setup
        self.library, self.training_choice = choose_training(config, setup, rounded=True)
        assert self.library is not None, "need_native has looked"
        self._base = native_weights(config, base.values())
        shapes = {} if setup.lora is None else adapter_shapes(config, setup.lora)
        self._adapters = {
            name: Parameter(Tensor(np.zeros(shape, np.float32)), name=name) for name, shape in shapes.items()
        }

    def begin_adapters(self, seed: int) -> None:
        """Give the adapters their first values: with them the model answers as its base does."""
        begin(self._adapters, self.whole_shapes(), self.config, self.setup.mesh, seed)

    def load_adapters(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Load the adapters, full name -> array; other names are passed over. Raises InputError for missing ones."""
        fill_adapters(self._adapters, arrays, self.config, self.setup)

    def trainable(self) -> dict[str, Parameter]:
        """Full name -> MindSpore parameter of the adapters, in the order of their layers."""
        return dict(self._adapters)

    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Full name -> shape of the adapters."""
        return {name: tuple(one.shape) for name, one in self._adapters.items()}

    def native_parameters(self) -> NativeParameters:
        """The parameters as the native library's operators take them."""
        return NativeParameters(self.config, {}, self._adapters, self.setup.lora, self._base, self.setup.dropout)

    def describe_training(self, batch: int, tokens: int) -> str:
        """What computes losses and gradients, and why, in a sentence; the same for batches of any shape."""
        return f"training by {self.training_choice}"


TrainedModel = SparkForCausalLM | QuantizedLora  # what training, evaluation and checkpoints take
