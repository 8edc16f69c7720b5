"""Where each parameter lies when several processes share the model: who holds it, whose gradients are summed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spark13b.model.mesh import Mesh
from spark13b.model.names import is_norm, model_axis

# Each process of the model group adds its own summand to these outputs, or computes them from its own part of the
# inputs: its gradient is a summand, too. The bias is added by the first process alone.
_SUMMANDS = re.compile(
    r"\.(out_proj|fc2)\.(bias|mindpet_delta_lora_b)$|\.(q_proj|k_proj|v_proj|fc0|fc1)\.mindpet_delta_lora_a$"
)


@dataclass(frozen=True)
class Placement:
    """How one parameter lies on the processes.

    `cut`: each process of the model group holds a part. `partial`: all hold the whole, and their gradients are
    summands. `sharded`: the optimizer's state is divided by rows over the data group.
    """

    cut: bool
    partial: bool
    sharded: bool


def placement(name: str, shape: tuple[int, ...], mesh: Mesh, optimizer_shard: bool) -> Placement:
    """The placement of the parameter of which this process holds `shape`; the same rule as `ckpt.layout.cut_of`."""
    divided = mesh.model.size > 1
    cut = divided and model_axis(name, len(shape)) is not None
    partial = divided and (_SUMMANDS.search(name) is not None or (mesh.sequence_parallel and is_norm(name)))
    sharded = optimizer_shard and mesh.data.size > 1 and shape[0] % mesh.data.size == 0
    return Placement(cut, partial, sharded)
