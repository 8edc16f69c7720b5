"""What a run will do, worked out before anything is loaded: steps, tokens, parameters, memory, collectives."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from spark13b.config.preset import Preset
from spark13b.errors import InputError
from spark13b.model.names import adapter_shapes, expected_shapes
from spark13b.train.communication import Collectives, prefill_collectives, step_collectives
from spark13b.train.fitting import check_fits
from spark13b.train.length import rows_a_step, run_steps
from spark13b.train.memory import Memory, answering_memory, training_memory

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """The size of a run, or of answering with an infer preset: then nothing is trained, and there are no steps."""

    task: str
    parameters: int  # of the model, without adapters
    trained_parameters: int
    steps: int | None  # None: it depends on the rows
    rows: int | None
    batch_size: int  # rows a step, over all data-parallel groups and accumulated batches
    tokens: int  # a row
    devices: int
    data_parallel: int
    model_parallel: int
    recompute: bool
    memory: Memory  # a device
    memory_limit: int | None  # bytes a device
    collectives: tuple[Collectives, ...]  # of a step; of an infer preset, those of reading a whole context

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.tokens

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "tokens_per_step": self.tokens_per_step}


def make_plan(preset: Preset, rows: int | None = None, row_length: int | None = None) -> Plan:
    """The plan of training `preset` on `rows` rows of `row_length` tokens; without rows, on some of full length.

    For an infer preset it is the plan of answering a prompt that fills the context. Raises InputError when the rows do
    not fit the model's context or its division over devices, or the memory is not enough.
    """
    tokens = preset.model.seq_length if row_length is None else row_length - 1
    _check_tokens(preset, tokens)
    answering = preset.task == "infer"
    parameters = trained = sum(map(math.prod, expected_shapes(preset.model).values()))
    if preset.task == "lora":
        trained = sum(map(math.prod, adapter_shapes(preset.model, preset.lora).values()))
    limit = memory_limit(preset)
    plan = Plan(
        task=preset.task,
        parameters=parameters,
        trained_parameters=0 if answering else trained,
        steps=None if answering or (rows is None and preset.train.epochs) else run_steps(preset, rows or 0, tokens),
        rows=rows,
        batch_size=1 if answering else rows_a_step(preset),
        tokens=tokens,
        devices=preset.parallel.devices,
        data_parallel=preset.parallel.data_parallel,
        model_parallel=preset.parallel.model_parallel,
        recompute=preset.train.recompute and not answering,
        memory=needed_memory(preset, tokens),
        memory_limit=limit,
        collectives=tuple(prefill_collectives(preset) if answering else step_collectives(preset, tokens)),
    )
    check_fits(preset, plan.memory, limit, needed_memory, tokens)
    return plan


def needed_memory(preset: Preset, tokens: int) -> Memory:
    """What each device needs for the preset's task, on rows of `tokens` tokens when it trains."""
    return answering_memory(preset) if preset.task == "infer" else training_memory(preset, tokens)


def memory_limit(preset: Preset) -> int | None:
    """Bytes that each device may use; on a CPU the processes of a machine share its memory. None: unknown."""
    machine = preset.machine
    own = None if machine.max_device_memory_gb is None else int(machine.max_device_memory_gb * GIB)
    if machine.device != "cpu":
        return own
    share = psutil.virtual_memory().total // min(machine.devices, machine.devices_per_node)
    return share if own is None else min(own, share)


def _check_tokens(preset: Preset, tokens: int) -> None:
    """Raise InputError for rows that the model or its division over devices cannot take."""
    model, parallel, train = preset.model, preset.parallel, preset.train
    if tokens > model.seq_length:
        raise InputError(
            f"the rows hold {tokens} tokens, the model's context {model.seq_length}",
            where="model.seq_length",
            fix=f"add --set model.seq_length={tokens}, or preprocess with --seq-length {model.seq_length}",
        )
    sliced = train.recompute and train.recompute_slice_activations
    batch = train.batch_size * tokens
    if preset.task != "infer" and (parallel.sequence_parallel or sliced) and batch % parallel.model_parallel:
        key = "parallel.sequence_parallel" if parallel.sequence_parallel else "train.recompute_slice_activations"
        raise InputError(
            f"{key} divides a batch of {train.batch_size} x {tokens} tokens over {parallel.model_parallel} devices, "
            "and that leaves a remainder",
            where=key,
            fix=f"preprocess with a --seq-length that is a multiple of {parallel.model_parallel}, "
            f"or add --set {key}=false",
        )
