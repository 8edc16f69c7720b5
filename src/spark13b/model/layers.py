"""The layers under the transformer: linear, layer norm, the gated MLP. Parameter names follow shared/SPEC.md."""

from __future__ import annotations

import math
from typing import Any

import mindspore
from mindspore import Parameter, nn, ops

from spark13b.config.model import SparkConfig
from spark13b.model.device import device, dtype
from spark13b.model.row_ops import CpuAffine, CpuLayerNorm

_GELU_SCALE = 2.0 * math.sqrt(2.0 / math.pi)


def empty_parameter(shape: tuple[int, ...], type_name: str, name: str) -> Parameter:
    """A parameter of zeros; `SparkForCausalLM` fills it."""
    return Parameter(ops.zeros(shape, dtype(type_name)), name=name)


class Linear(nn.Cell):
    """y = x W^T + b with W (out, in), computed in the config's compute type."""

    def __init__(self, inputs: int, outputs: int, config: SparkConfig) -> None:
        super().__init__()
        self.weight = empty_parameter((outputs, inputs), config.param_init_type, "weight")
        self.bias = empty_parameter((outputs,), config.param_init_type, "bias")
        self.compute_type = dtype(config.compute_type)
        self.outputs = outputs
        self.affine = CpuAffine() if device() == "cpu" else _Affine()

    def construct(self, x: Any) -> Any:
        """(..., in) -> (..., out)"""
        rows = x.reshape((-1, x.shape[-1]))
        weight, bias = ops.cast(self.weight, self.compute_type), ops.cast(self.bias, self.compute_type)
        return self.affine(rows, weight, bias).reshape((*x.shape[:-1], self.outputs))


class _Affine(nn.Cell):
    """x W^T + b with MindSpore's own gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)
        self.bias_add = ops.BiasAdd()

    def construct(self, x: Any, weight: Any, bias: Any) -> Any:
        return self.bias_add(self.matmul(x, weight), bias)


class LayerNorm(nn.Cell):
    """Layer normalization over the last axis, statistics in `layernorm_compute_type`; out in the compute type."""

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        self.gamma = empty_parameter((config.hidden_size,), config.layernorm_compute_type, "gamma")
        self.beta = empty_parameter((config.hidden_size,), config.layernorm_compute_type, "beta")
        self.statistics_type = dtype(config.layernorm_compute_type)
        self.compute_type = dtype(config.compute_type)
        self.on_cpu = device() == "cpu" and config.layernorm_compute_type == "float32"
        if self.on_cpu:
            self.norm = CpuLayerNorm(config.layernorm_epsilon)
        else:
            self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=config.layernorm_epsilon)

    def construct(self, x: Any) -> Any:
        """(..., C) -> (..., C)"""
        rows = ops.cast(x, self.statistics_type)
        if self.on_cpu:
            y = self.norm(rows.reshape((-1, x.shape[-1])), self.gamma, self.beta).reshape(x.shape)
        else:
            y, _, _ = self.norm(rows, self.gamma, self.beta)
        return ops.cast(y, self.compute_type)


def gelu(z: Any) -> Any:
    """The tanh form of GELU, written with the sigmoid: (1 + tanh u) / 2 = sigmoid(2 u).

    MindSpore's CPU kernel of GELU is five times slower than this, and its tanh is off by 1e-4 beyond 5.
    """
    return z * ops.sigmoid(z * (_GELU_SCALE + (0.044715 * _GELU_SCALE) * (z * z)))


class GatedMlp(nn.Cell):
    """(gelu(fc0 h) * fc1 h) through fc2: fc0 is the gate, fc1 the value, fc2 the way back."""

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        width = config.ffn_hidden_size // 2
        self.fc0 = Linear(config.hidden_size, width, config)
        self.fc1 = Linear(config.hidden_size, width, config)
        self.fc2 = Linear(width, config.hidden_size, config)

    def construct(self, h: Any) -> Any:
        """(..., C) -> (..., C)"""
        return self.fc2(gelu(self.fc0(h)) * self.fc1(h))


class VocabEmbedding(nn.Cell):
    """The embedding, used again as the output projection."""

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        self.embedding_table = empty_parameter(
            (config.vocab_size, config.hidden_size), config.embedding_init_type, "embedding_table"
        )
        self.compute_type = dtype(config.compute_type)
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, ids: Any) -> Any:
        """(...) ints -> (..., C)"""
        return ops.cast(ops.gather(self.embedding_table, ids, 0), self.compute_type)

    def table(self) -> Any:
        """(V, C) in the compute type"""
        return ops.cast(self.embedding_table, self.compute_type)

    def logits(self, x: Any, table: Any) -> Any:
        """(N, C), the table -> (N, V) float32"""
        return ops.cast(self.matmul(x, table), mindspore.float32)
