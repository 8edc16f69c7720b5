"""What a run will do, worked out before anything is loaded: steps, tokens, parameters, memory, collectives."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import psutil

from spark13b.config.preset import Preset
from spark13b.errors import InputError
from spark13b.model.device import check_types
from spark13b.model.names import adapter_shapes, expected_shapes
from spark13b.model.native_choice import choose_answering, need_native
from spark13b.train.answering_files import UNKNOWN, AnsweringFiles
from spark13b.train.answering_memory import answering_memory
from spark13b.train.communication import Collectives, prefill_collectives, step_collectives
from spark13b.train.fitting import check_fits, gib
from spark13b.train.length import rows_a_step, run_steps
from spark13b.train.memory import Memory, training_memory
from spark13b.train.native_memory import native_trainer
from spark13b.train.rounded import RoundedBase

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """The size of a run, or of answering with an infer preset: then nothing is trained, and there are no steps."""

    task: str
    parameters: int  # of the model, without adapters
    trained_parameters: int
    computes: str  # the native library or MindSpore's operators, and why
    steps: int | None  # None: it depends on the rows
    rows: int | None
    batch_size: int  # rows a step, over all data-parallel groups and accumulated batches
    tokens: int  # a row
    devices: int
    devices_per_node: int  # of them on one machine
    data_parallel: int
    model_parallel: int
    recompute: bool
    memory: Memory  # a device
    memory_limit: int | None  # bytes a device
    collectives: tuple[Collectives, ...]  # of a step; of an infer preset, those of reading a whole context
    seats: int = 1  # answers at once

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.tokens

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "tokens_per_step": self.tokens_per_step}


def make_plan(
    preset: Preset, rows: int | None = None, row_length: int | None = None, base: RoundedBase | None = None
) -> Plan:
    """The plan of training `preset` on `rows` rows of `row_length` tokens; without rows, on some of full length.

    `base`: what is known of a quantised one.

    For an infer preset it is that of answering a prompt. Raises InputError when the rows do not fit the model's context
    or its division over devices, what will compute here cannot do it, or the memory is not enough.
    """
    if preset.task == "infer":
        return plan_answering(preset)
    tokens = preset.model.seq_length if row_length is None else row_length - 1
    _check_tokens(preset, tokens)
    trained = parameters = _parameters(preset)
    if preset.task == "lora":
        trained = sum(map(math.prod, adapter_shapes(preset.model, preset.lora).values()))
    if base is None and preset.model.weight_bits is not None:
        base = RoundedBase.usual(preset.model)
        shared = preset.parallel.model_parallel
        need_native(preset.model, preset.machine.device, None, model_parallel=shared, lora=preset.lora)
    library, computes = native_trainer(preset, base)
    if library is None:
        check_types(preset.model, preset.machine.device)
    limit = memory_limit(preset)
    plan = Plan(
        task=preset.task,
        parameters=parameters,
        trained_parameters=trained,
        computes=computes,
        steps=None if rows is None and preset.train.epochs else run_steps(preset, rows or 0, tokens),
        rows=rows,
        batch_size=rows_a_step(preset),
        tokens=tokens,
        devices=preset.parallel.devices,
        devices_per_node=devices_per_node(preset),
        data_parallel=preset.parallel.data_parallel,
        model_parallel=preset.parallel.model_parallel,
        recompute=preset.train.recompute,
        memory=training_memory(preset, tokens, base),
        memory_limit=limit,
        collectives=tuple(step_collectives(preset, tokens)),
    )
    check_fits(preset, plan.memory, limit, partial(training_memory, base=base), tokens)
    return plan


def plan_answering(preset: Preset, seats: int = 1, context: int | None = None, files: AnsweringFiles = UNKNOWN) -> Plan:
    """The plan of answering `seats` prompts at once, each with its answer at most `context` tokens long.

    Raises InputError when what will compute here cannot do it, or the memory is not enough: it names the seats that
    fit, else changes of the preset.
    """
    preset = preset.model_copy(update={"task": "infer"})
    tokens, limit = min(context or preset.model.seq_length, preset.model.seq_length), memory_limit(preset)
    computes = _check_computing(preset, limit, files)
    check_seats(preset, seats, context, limit, files)
    return Plan(
        task=preset.task,
        parameters=_parameters(preset),
        trained_parameters=0,
        computes=computes,
        steps=None,
        rows=None,
        batch_size=1,
        tokens=tokens,
        devices=preset.parallel.devices,
        devices_per_node=devices_per_node(preset),
        data_parallel=preset.parallel.data_parallel,
        model_parallel=preset.parallel.model_parallel,
        recompute=False,
        memory=answering_memory(preset, seats, context, files),
        memory_limit=limit,
        collectives=tuple(prefill_collectives(preset)),
        seats=seats,
    )


def _check_computing(preset: Preset, limit: int | None, files: AnsweringFiles) -> str:
    """What will compute answers here, and why.

    Raises InputError when MindSpore would and cannot: it has no such products, or quantised weights, which become
    floats for it, exceed `limit` bytes.
    """
    device = preset.machine.device
    rounded = files.rounded or preset.model.weight_bits is not None
    shared = preset.parallel.model_parallel
    library, computes = choose_answering(preset.model, device, model_parallel=shared, rounded=rounded)
    if library is not None:
        return computes
    check_types(preset.model, device)
    weights = answering_memory(preset, files=files).weights
    if rounded and device == "cpu" and limit is not None and weights > limit:
        raise InputError(
            f"weights need {gib(weights)} a device and may use {gib(limit)}; computes: {computes}",
            where="the memory of this machine",
            fix="run 'spark13b native build', without SPARK13B_NATIVE=0, and let one process compute in float32 or "
            "bfloat16",
        )
    return computes


def check_seats(
    preset: Preset, seats: int, context: int | None, limit: int | None, files: AnsweringFiles = UNKNOWN
) -> None:
    """Raise InputError when so many answers at once need more than `limit` bytes a device; None is no limit."""

    def needed(preset: Preset, tokens: int) -> Memory:
        return answering_memory(preset, seats, min(context or tokens, tokens), files)

    most = _most_seats(preset, seats, context, limit, files)
    if limit is None or most == seats:
        return
    if not most:
        check_fits(preset, needed(preset, preset.model.seq_length), limit, needed, preset.model.seq_length)
    memory = answering_memory(preset, seats, context, files)
    raise InputError(
        f"{seats} answers at once need {gib(memory.total)} a device and may use {gib(limit)}: "
        f"weights {gib(memory.weights)}, caches {gib(memory.cache)}",
        where="machine.max_device_memory_gb",
        fix=f"answer at most {most} at once (--seats or --batch-size {most}), or shorter texts (serve: --context)",
    )


def check_answering(preset: Preset, seats: int, context: int | None = None, files: AnsweringFiles = UNKNOWN) -> None:
    """Raise InputError, before anything is loaded, when so many answers at once do not fit in an NPU's memory.

    On a CPU caches grow as texts do, and room for all of them is not needed: only what cannot be is refused.
    """
    limit = memory_limit(preset)
    _check_computing(preset, limit, files)
    if preset.machine.device != "cpu":
        check_seats(preset, seats, context, limit, files)


def seats_that_fit(preset: Preset, wanted: int, context: int | None = None, files: AnsweringFiles = UNKNOWN) -> int:
    """As many answers at once as the memory holds: at most `wanted`, at least one."""
    if preset.machine.device == "cpu":  # there caches grow as texts do
        return wanted
    return max(1, _most_seats(preset, wanted, context, memory_limit(preset), files))


def _most_seats(preset: Preset, wanted: int, context: int | None, limit: int | None, files: AnsweringFiles) -> int:
    """The most answers at once, at most `wanted`, that need no more than `limit` bytes; 0: not even one."""
    if limit is None:
        return wanted
    for seats in range(wanted, 0, -1):
        if answering_memory(preset, seats, context, files).total <= limit:
            return seats
    return 0


def _parameters(preset: Preset) -> int:
    """Numbers of the model, without adapters."""
    return sum(map(math.prod, expected_shapes(preset.model).values()))


def devices_per_node(preset: Preset) -> int:
    """Devices of the run on one machine."""
    return min(preset.machine.devices, preset.machine.devices_per_node)


def memory_limit(preset: Preset) -> int | None:
    """Bytes that each device may use; on a CPU the processes of a machine share its memory. None: unknown."""
    machine = preset.machine
    own = None if machine.max_device_memory_gb is None else int(machine.max_device_memory_gb * GIB)
    if machine.device != "cpu":
        return own
    share = psutil.virtual_memory().total // devices_per_node(preset)
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
