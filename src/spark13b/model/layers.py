"""The layers under the transformer: linear, layer norm, the gated MLP. Parameter names follow shared/SPEC.md.

Under tensor parallelism (`Mesh.model`) the sizes are those of this process's part, and the collectives stand between
the layers: at the entrance and the exit of attention and MLP, around the embedding and before the logits.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import initializer

from spark13b.config.model import SparkConfig
from spark13b.model.adapter import Adapter, AdapterPlan, AdapterPlans
from spark13b.model.collectives import entrance, exit_of
from spark13b.model.device import device, dtype
from spark13b.model.mesh import ALONE, Mesh
from spark13b.model.row_ops import CpuAffine, CpuLayerNorm

# Up to so many rows MindSpore's own LayerNorm and GELU are faster on a CPU than ours, being one operator each
_FEW = 16
_GELU_SCALE = 2.0 * math.sqrt(2.0 / math.pi)


def empty_parameter(shape: tuple[int, ...], type_name: str, name: str) -> Parameter:
    """A parameter of zeros; `SparkForCausalLM` fills it."""
    return Parameter(initializer("zeros", shape, dtype(type_name)), name=name)


class Linear(nn.Cell):
    """y = x W^T + b with W (out, in), computed in the config's compute type.

    `summand`: the outputs of several processes are summed, and b is the first one's to add.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: SparkConfig,
        adapter: AdapterPlan | None = None,
        summand: Mesh = ALONE,
    ) -> None:
        super().__init__()
        self.weight = empty_parameter((outputs, inputs), config.param_init_type, "weight")
        self.bias = empty_parameter((outputs,), config.param_init_type, "bias")
        self.compute_type = dtype(config.compute_type)
        self.adds_bias = summand.model.index == 0
        self.affine = CpuAffine() if device() == "cpu" else _Affine()
        self.adapted = adapter is not None
        if adapter is not None:
            rank = adapter.lora.rank
            self.mindpet_delta_lora_a = empty_parameter((rank, inputs), "float32", "mindpet_delta_lora_a")
            self.mindpet_delta_lora_b = empty_parameter((outputs, rank), "float32", "mindpet_delta_lora_b")
            self.adapter = Adapter(config, adapter)

    def construct(self, x: Any, key: Any = None) -> Any:
        """x (N, in) -> (N, out); `key` of the adapters' dropout"""
        weight, bias = ops.cast(self.weight, self.compute_type), ops.cast(self.bias, self.compute_type)
        y = self.affine(x, weight, bias if self.adds_bias else bias * 0.0)
        if self.adapted:
            y = y + self.adapter(x, self.mindpet_delta_lora_a, self.mindpet_delta_lora_b, key)
        return y


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
            self.many = CpuLayerNorm(config.layernorm_epsilon)
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=config.layernorm_epsilon)

    def construct(self, x: Any) -> Any:
        """(..., C) -> (..., C)"""
        rows = ops.cast(x, self.statistics_type)
        if self.on_cpu and x.size > _FEW * x.shape[-1]:
            y = self.many(rows.reshape((-1, x.shape[-1])), self.gamma, self.beta).reshape(x.shape)
        else:
            y, _, _ = self.norm(rows, self.gamma, self.beta)
        return ops.cast(y, self.compute_type)


def gelu(z: Any) -> Any:
    """The tanh form of GELU, written with the sigmoid: (1 + tanh u) / 2 = sigmoid(2 u).

    MindSpore's CPU kernel of GELU is five times slower than this with many rows, and its tanh is off by 1e-4 beyond 5.
    """
    return z * ops.sigmoid(z * (_GELU_SCALE + (0.044715 * _GELU_SCALE) * (z * z)))


class GatedMlp(nn.Cell):
    """(gelu(fc0 h) * fc1 h) through fc2: fc0 is the gate, fc1 the value, fc2 the way back."""

    def __init__(self, config: SparkConfig, mesh: Mesh, adapters: AdapterPlans) -> None:
        super().__init__()
        width = config.ffn_hidden_size // 2 // mesh.model.size
        self.enter, self.leave = entrance(mesh), exit_of(mesh)
        self.fc0 = Linear(config.hidden_size, width, config, adapters("fc0"))
        self.fc1 = Linear(config.hidden_size, width, config, adapters("fc1"))
        self.fc2 = Linear(width, config.hidden_size, config, adapters("fc2"), summand=mesh)
        self.gelu = ops.GeLU()

    def construct(self, h: Any, key: Any = None) -> Any:
        """(N, C) -> (N, C)"""
        h = self.enter(h)
        gate = self.fc0(h, key)
        gate = self.gelu(gate) if h.shape[0] <= _FEW else gelu(gate)
        return self.leave(self.fc2(gate * self.fc1(h, key), key))


class VocabEmbedding(nn.Cell):
    """The embedding, used again as the output projection; a process holds its part of the vocabulary."""

    def __init__(self, config: SparkConfig, mesh: Mesh) -> None:
        super().__init__()
        self.own = config.vocab_size // mesh.model.size
        self.first = mesh.model.index * self.own
        self.divided = mesh.model.size > 1
        self.embedding_table = empty_parameter(
            (self.own, config.hidden_size), config.embedding_init_type, "embedding_table"
        )
        self.compute_type = dtype(config.compute_type)
        self.matmul = ops.MatMul(transpose_b=True)
        self.enter, self.leave = entrance(mesh), exit_of(mesh)

    def construct(self, ids: Any) -> Any:
        """(N,) ints -> (N, C), under sequence parallelism this process's rows of it"""
        if not self.divided:
            return ops.cast(ops.gather(self.embedding_table, ids, 0), self.compute_type)
        place = ids - self.first
        known = ops.logical_and(place >= 0, place < self.own)
        rows = ops.cast(ops.gather(self.embedding_table, ops.select(known, place, place * 0), 0), self.compute_type)
        return self.leave(rows * ops.cast(known, self.compute_type).reshape((-1, 1)))

    def table(self) -> Any:
        """(V, C) in the compute type"""
        return ops.cast(self.embedding_table, self.compute_type)

    def logits(self, x: Any, table: Any) -> Any:
        """(N, C), the table -> (N, V) float32, V being this process's part"""
        return ops.cast(self.matmul(self.enter(x), table), mindspore.float32)
