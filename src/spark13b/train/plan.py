"""What a run will do, worked out before anything is loaded: steps, tokens, parameters, memory."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from spark13b.config.preset import Preset
from spark13b.errors import InputError
from spark13b.model.names import adapter_shapes, expected_shapes
from spark13b.train.length import rows_a_step, run_steps

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Plan:
    """The size of a run. Memory in bytes a device, for what stays through a step; activations come on top."""

    parameters: int  # of the model, without adapters
    steps: int | None  # unknown for epochs of unknown rows
    rows: int | None
    batch_size: int  # rows a step, over all data-parallel groups
    tokens: int  # a row
    devices: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.tokens

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "tokens_per_step": self.tokens_per_step}


def make_plan(preset: Preset, rows: int | None = None, row_length: int | None = None) -> Plan:
    """The plan of training `preset` on `rows` rows of `row_length` tokens; without rows, on some of full length.

    Raises InputError when the rows do not fit the model's context.
    """
    tokens = preset.model.seq_length if row_length is None else row_length - 1
    if tokens > preset.model.seq_length:
        raise InputError(
            f"the rows hold {tokens} tokens, the model's context {preset.model.seq_length}",
            where="model.seq_length",
            fix=f"add --set model.seq_length={tokens}, or preprocess with --seq-length {preset.model.seq_length}",
        )
    shapes = expected_shapes(preset.model)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    parallel = preset.parallel
    batch = rows_a_step(preset)
    weights = gradients = sum(size * _BYTES[stored_type(name, preset)] for name, size in sizes.items())
    parameters = trained = sum(sizes.values())
    if preset.task == "lora":  # adapters are float32
        trained = sum(map(math.prod, adapter_shapes(preset.model, preset.lora).values()))
        gradients = 4 * trained
        weights += gradients
    state = 8 * trained  # Adam's m and v, float32
    shards = parallel.model_parallel
    return Plan(
        parameters=parameters,
        steps=run_steps(preset, rows, tokens) if rows or not preset.train.epochs else None,
        rows=rows,
        batch_size=batch,
        tokens=tokens,
        devices=parallel.devices,
        weights_bytes=weights // shards,
        gradients_bytes=gradients // shards,
        optimizer_bytes=state // (parallel.devices if parallel.optimizer_shard else shards),
    )


def stored_type(name: str, preset: Preset) -> str:
    """The number format a parameter is kept in."""
    if name.endswith("embedding_table"):
        return preset.model.embedding_init_type
    if name.endswith((".gamma", ".beta")):
        return preset.model.layernorm_compute_type
    return preset.model.param_init_type
