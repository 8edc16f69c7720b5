"""Small models for tests: attention in blocks of any size, and a model's loss with its gradients as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from spark13b.config.model import SparkConfig
from spark13b.config.sections import LoraConfig
from spark13b.model.attention.blocked import BlockedAttention
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.device import device
from spark13b.model.loss import TINY, Loss, TotalLoss
from spark13b.model.names import adapter_shapes, expected_shapes
from spark13b.model.native_training import NativeGradients, NativeParameters
from spark13b.native.library import Library

Gradients = Callable[[np.ndarray, np.ndarray], tuple[float, dict[str, np.ndarray]]]


class SmallBlocks(BlockedAttention):
    """Blocked attention with blocks of `size` queries, which real ones reach only in long texts."""

    def __init__(self, config: SparkConfig, size: int) -> None:
        super().__init__(config)
        self.size = size

    def queries(self, heads: int, tokens: int) -> int:
        return self.size


def make_model(config: SparkConfig, weights: dict[str, np.ndarray], block: int | None = None) -> SparkForCausalLM:
    """A model with these weights; `block`: attention goes in blocks of so many queries, whatever the shape."""
    if block is None:
        model = SparkForCausalLM(config, seed=None)
    else:
        model = SparkForCausalLM(config.model_copy(update={"attention_backend": "blocked"}), seed=None)
        model.transformer.transformer.attend.backend = SmallBlocks(config, block)
    model.load_state(weights)
    return model


def loss_and_gradients(model: SparkForCausalLM, key: np.ndarray | None = None) -> Gradients:
    """A function of ids (B, T+1), mask of targets (B, T) -> loss, full name -> gradient of what is trained.

    `key`: of dropout; without one nothing is dropped.
    """
    weights = model.trainable()
    compute = _Gradients(model, key)

    def call(ids: np.ndarray, mask: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        loss, gradients = compute(*tensors(ids, mask))
        return float(loss.asnumpy()), {
            name: gradient.asnumpy() for name, gradient in zip(weights, gradients, strict=True)
        }

    return call


def native_gradients(
    library: Library,
    config: SparkConfig,
    arrays: dict[str, np.ndarray],
    recompute: bool = False,
    lora: LoraConfig | None = None,
    dropout: float = 0.0,
    key: np.ndarray | None = None,
) -> Gradients:
    """The same by the native library, of these weights and adapters; no MindSpore operator but the library's.

    `key`: of dropout; without one that of zeros.
    """
    device()
    names, adapted = list(expected_shapes(config)), list(adapter_shapes(config, lora)) if lora else []
    weights, adapters = (
        {name: Parameter(Tensor(np.asarray(arrays[name], np.float32)), name=name) for name in some}
        for some in (names, adapted)
    )
    compute = NativeGradients(library, NativeParameters(config, weights, adapters, lora, dropout=dropout), recompute)
    names = adapted or names

    def call(ids: np.ndarray, mask: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        factor = Tensor(np.float32(1.0 / (mask.sum() + TINY)))
        loss, gradients = compute(*tensors(ids, mask), Tensor(np.zeros(2, np.int32) if key is None else key), factor)
        return float(loss.asnumpy()), {
            name: gradient.asnumpy() for name, gradient in zip(names, gradients, strict=True)
        }

    return call


class _Gradients(nn.Cell):
    """A cell, because `value_and_grad` that is called by itself does not see weights that are loaded later."""

    def __init__(self, model: SparkForCausalLM, key: np.ndarray | None) -> None:
        super().__init__(auto_prefix=False)
        weights = ParameterTuple(model.trainable().values())
        loss = Loss(model.transformer) if key is None else _LossWithDropout(model, key)
        self.value_and_gradients = ops.value_and_grad(loss, None, weights)

    def construct(self, inputs: Any, targets: Any, mask: Any) -> Any:
        return self.value_and_gradients(inputs, targets, mask)


class _LossWithDropout(nn.Cell):
    def __init__(self, model: SparkForCausalLM, key: np.ndarray) -> None:
        super().__init__(auto_prefix=False)
        self.total, self.key = TotalLoss(model.transformer), Tensor(key)

    def construct(self, inputs: Any, targets: Any, mask: Any) -> Any:
        return self.total(inputs, targets, mask, self.key) / (mask.sum(-1).sum() + TINY)


def tensors(ids: np.ndarray, mask: np.ndarray) -> tuple[Any, Any, Any]:
    """ids (B, T+1), mask of the targets (B, T) -> inputs, targets and mask as a training graph takes them."""
    inputs, targets = ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32)
    return tuple(Tensor(np.ascontiguousarray(array)) for array in (inputs, targets, mask.astype(np.float32)))
