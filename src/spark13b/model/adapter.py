"""Low-rank adapters beside linear layers (Hu et al. 2021, LoRA), under the original's parameter names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindspore import nn, ops

from spark13b.config.model import SparkConfig
from spark13b.config.sections import LoraConfig
from spark13b.model.device import dtype
from spark13b.model.dropout import Dropout
from spark13b.model.mesh import Mesh
from spark13b.model.names import is_cut_by_columns


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter that is to be made: its size, and where its layer stands."""

    lora: LoraConfig
    place: str
    first_column: int  # of the inputs that this process holds, in parts of its own size


AdapterPlans = Callable[[str], AdapterPlan | None]  # a linear layer's name in its block -> its adapter, if any


def adapter_plans(lora: LoraConfig | None, mesh: Mesh, place: str) -> AdapterPlans:
    """The adapters of one block at `place`, for the linear layers that `lora.targets` finds."""

    def plan(name: str) -> AdapterPlan | None:
        if lora is None or not lora.adapts(name):
            return None
        return AdapterPlan(lora, f"{place}.{name}", mesh.model.index if is_cut_by_columns(name) else 0)

    return plan


class Adapter(nn.Cell):
    """x -> (x A^T) B^T alpha / rank with A (rank, in), B (out, rank), both float32: parameters of the linear layer."""

    def __init__(self, config: SparkConfig, plan: AdapterPlan) -> None:
        super().__init__()
        lora = plan.lora
        self.scale = lora.alpha / lora.rank
        self.compute_type = dtype(config.compute_type)
        self.matmul = ops.MatMul(transpose_b=True)
        self.drops = lora.dropout > 0
        if self.drops:
            self.dropout = Dropout(lora.dropout, plan.place, first_column=plan.first_column)

    def construct(self, x: Any, a: Any, b: Any, key: Any) -> Any:
        """x (N, in) -> (N, out); without `key` nothing is dropped"""
        if self.drops and key is not None:
            x = self.dropout(x, key)
        a, b = ops.cast(a, self.compute_type), ops.cast(b, self.compute_type)
        return self.matmul(self.matmul(x, a) * self.scale, b)
