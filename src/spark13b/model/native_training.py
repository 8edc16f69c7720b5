"""The seam to training in C++: the loss of a batch, and its gradients, each one operator in MindSpore's graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from spark13b.config.model import SparkConfig
from spark13b.config.sections import LINEAR_NAMES, LoraConfig
from spark13b.model.device import device
from spark13b.model.dropout import drop_threshold, place_number
from spark13b.model.loss import TINY
from spark13b.model.native_choice import TYPES, adapted_bits, choose_native
from spark13b.model.rope_table import native_rope_table
from spark13b.model.transformer import Setup
from spark13b.native.library import Library, thread_count
from spark13b.native.weights import Weights


def choose_training(config: SparkConfig, setup: Setup, rounded: bool = False) -> tuple[Library | None, str]:
    """The library that computes losses and gradients of such a model here, or None; and what computes, and why.

    `rounded`: its weights are those of a quantised file.
    """
    shared = setup.mesh.model.size
    return choose_native(config, device(), model_parallel=shared, lora=setup.lora, rounded=rounded)


@dataclass(frozen=True)
class NativeParameters:
    """A model's parameters as the operators take them: its weights and adapters by full name, in a checkpoint's order.

    With adapters these alone are trained. Weights in `base` are no tensors, and `weights` is empty then.
    """

    config: SparkConfig
    weights: Mapping[str, Parameter]
    adapters: Mapping[str, Parameter] = field(default_factory=dict)
    lora: LoraConfig | None = None
    base: Weights | None = None
    dropout: float = 0.0  # of what is added to the residual stream; that of adapters' inputs is in `lora`

    def operator(self, name: str) -> str:
        """The library's function that takes them."""
        return name if self.base is None else f"{name}_elsewhere"

    @property
    def tensors(self) -> ParameterTuple:
        return ParameterTuple([*self.weights.values(), *self.adapters.values()])

    @property
    def gradients(self) -> list[tuple[int, ...]]:
        """Shapes of the gradients."""
        return [tuple(one.shape) for one in (self.adapters or self.weights).values()]

    def numbers(self, library: Library, recompute: bool = False) -> Tensor:
        """What the operators are told beside tensors; operators.cpp says in which order."""
        config = self.config
        assert library.multiplier(config.compute_type) is not None, "choose_training has looked"  # which opens oneDNN
        kind, epsilon = TYPES.index(config.compute_type), float_bits(config.layernorm_epsilon)
        numbers = [thread_count(), library.level, config.num_heads, config.sparse_local_size, kind, int(recompute)]
        numbers += [epsilon, config.num_layers]
        if self.base is None:
            numbers += [TYPES.index(config.param_init_type), TYPES.index(config.embedding_init_type)]
        else:
            numbers += self.base.addresses()
        if self.lora is not None:
            numbers += [self.lora.rank, float_bits(self.lora.alpha / self.lora.rank)]
            numbers += [adapted_bits(self.lora)] * config.num_layers
        return Tensor(np.array(numbers, np.int64))

    def dropout_numbers(self) -> Tensor | None:
        """What the operator is told of dropout beside a batch's key, None where nothing is dropped; see dropout.h."""
        rates = (self.dropout, self.lora.dropout if self.lora is not None else 0.0)
        if not any(rates):
            return None
        places = ["embedding"]
        for layer in range(self.config.num_layers):
            places += [f"layers.{layer}.{name}" for name in ("attention", "mlp", *LINEAR_NAMES)]
        scales = [float_bits(1.0 / (1.0 - rate)) for rate in rates]
        return Tensor(np.array([*map(drop_threshold, rates), *scales, *map(place_number, places)], np.int64))


class NativeSums(nn.Cell):
    """inputs, targets (B, T) int32, mask (B, T) float32 -> sum of mask * nll, of mask * right and of mask, scalars."""

    def __init__(self, library: Library, parameters: NativeParameters) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = parameters  # keeps what is no tensor
        self.tensors, self.numbers = parameters.tensors, parameters.numbers(library)
        self.cos, self.sin = _rotation(parameters.config)
        self.one = Tensor(np.ones(1, np.float32))
        self.operator = ops.Custom(
            f"{library.path}:{parameters.operator('spark_loss')}", (2,), mindspore.float32, "aot"
        )

    def construct(self, inputs: Any, targets: Any, mask: Any) -> tuple[Any, Any, Any]:
        sums = self.operator(self.numbers, inputs, targets, mask, self.one, self.cos, self.sin, *self.tensors)
        return sums[0], sums[1], mask.sum(-1).sum()


class NativeLoss(nn.Cell):
    """inputs, targets, mask (B, T) -> sum(mask * nll) / (sum(mask) + 1e-5), as `Loss`."""

    def __init__(self, library: Library, parameters: NativeParameters) -> None:
        super().__init__(auto_prefix=False)
        self.sums = NativeSums(library, parameters)

    def construct(self, inputs: Any, targets: Any, mask: Any) -> Any:
        total, _, count = self.sums(inputs, targets, mask)
        return total / (count + TINY)


class NativeGradients(nn.Cell):
    """inputs, targets, mask (B, T), key, factor -> factor times the summed loss, and the gradients of what is trained.

    The same numbers as `ops.value_and_grad` of the whole model, but for rounding, and the same masks of dropout, which
    `key` is of. With `recompute` no activations inside a layer are kept.
    """

    def __init__(self, library: Library, parameters: NativeParameters, recompute: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = parameters
        self.tensors, self.numbers = parameters.tensors, parameters.numbers(library, recompute)
        self.cos, self.sin = _rotation(parameters.config)
        self.dropout = parameters.dropout_numbers()
        shapes = ((2,), *parameters.gradients)
        types = (mindspore.float32,) * len(shapes)
        name = parameters.operator("spark_loss_and_gradients")
        self.operator = ops.Custom(f"{library.path}:{name}", shapes, types, "aot")

    def construct(self, inputs: Any, targets: Any, mask: Any, key: Any, factor: Any) -> tuple[Any, Any]:
        given = (self.numbers, inputs, targets, mask, factor.reshape((1,)), self.cos, self.sin, *self.tensors)
        if self.dropout is not None:
            given = (*given, ops.concat((ops.cast(key, mindspore.int64), self.dropout)))
        found = self.operator(*given)
        return found[0][0], found[1:]


def float_bits(value: float) -> int:
    """A float32 among whole numbers."""
    return int(np.float32(value).view(np.uint32))


def _rotation(config: SparkConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of all positions, (T, D) float32."""
    cos, sin = native_rope_table(config)
    return Tensor(cos), Tensor(sin)
