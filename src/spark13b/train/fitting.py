"""A plan that exceeds the memory of its devices: what is large, and what to change so that it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from spark13b.config.preset import Preset
from spark13b.errors import InputError
from spark13b.train.memory import Memory

Needed = Callable[[Preset, int], Memory]  # preset, tokens of a row -> what a device needs

_SHORTEST = 512  # tokens; no shorter rows are proposed
_LABELS = ("weights", "gradients", "optimizer", "activations", "cache", "runtime")


@dataclass(frozen=True)
class Change:
    """Values of a preset by dotted key, and the same preset with them; `tokens` of a row then."""

    values: dict[str, Any]
    preset: Preset
    tokens: int

    def __str__(self) -> str:
        return " ".join(f"--set {key}={_text(value)}" for key, value in self.values.items())


def check_fits(preset: Preset, memory: Memory, limit: int | None, needed: Needed, tokens: int) -> None:
    """Raise InputError when `memory` exceeds `limit` bytes; it names the largest parts and the changes that help."""
    if limit is None or memory.total <= limit:
        return
    sizes = sorted(((getattr(memory, label), label) for label in _LABELS), reverse=True)
    largest = ", ".join(f"{label} {gib(size)}" for size, label in sizes[:3] if size)
    what = f"a device needs {gib(memory.total)} of memory and may use {gib(limit)}; the most of it: {largest}"
    where = "machine.max_device_memory_gb" if preset.machine.max_device_memory_gb else "the memory of this machine"
    raise InputError(what, where=where, fix=_fix(preset, limit, needed, tokens))


def gib(size: int) -> str:
    """Bytes for people."""
    if size < 2**20:
        return f"{size:,} bytes"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _fix(preset: Preset, limit: int, needed: Needed, tokens: int) -> str:
    """The single changes that are enough, each with what is needed then; else the strongest ones together."""
    fits: dict[tuple[str, ...], Change] = {}
    for change in _changes(preset, tokens):
        if needed(change.preset, change.tokens).total <= limit:
            fits.setdefault(tuple(change.values), change)  # the mildest of its kind
    if fits:
        lines = [f"{change} ({gib(needed(change.preset, change.tokens).total)})" for change in fits.values()]
        return "add " + "\n    or ".join(lines)

    def strength(change: Change) -> tuple[int, int]:
        memory = needed(change.preset, change.tokens)
        return memory.total, sum(getattr(memory, label) for label in _LABELS)

    together = Change({}, preset, tokens)
    while strength(together)[0] > limit:
        best = min(_changes(together.preset, together.tokens), key=strength, default=together)
        if strength(best) >= strength(together):
            return "use more or larger devices, or a smaller model: no change of this preset is enough"
        together = Change(together.values | best.values, best.preset, best.tokens)
    return f"add {together} ({gib(strength(together)[0])})"


def _changes(preset: Preset, tokens: int) -> Iterator[Change]:
    """Single steps that need less memory and leave the result of the training alone; then those that do not."""
    for values, length in _proposals(preset, tokens):
        changed = _changed(preset, values)
        if changed is not None:
            yield Change(values, changed, length)


def _proposals(preset: Preset, tokens: int) -> Iterator[tuple[dict[str, Any], int]]:
    parallel, train, model = preset.parallel, preset.train, preset.model
    if preset.task != "infer":
        if not train.recompute:
            yield {"train.recompute": True}, tokens
        if train.batch_size > 1:
            half = next(n for n in range(2, train.batch_size + 1) if train.batch_size % n == 0)
            while train.batch_size % half == 0:
                smaller = {"train.batch_size": train.batch_size // half}
                yield {**smaller, "train.accumulation_steps": train.accumulation_steps * half}, tokens
                half *= 2
        if parallel.data_parallel > 1 and not parallel.optimizer_shard:
            yield {"parallel.optimizer_shard": True}, tokens
        if parallel.model_parallel > 1 and not parallel.sequence_parallel:
            yield {"parallel.sequence_parallel": True}, tokens
    wider = {"parallel.model_parallel": 2 * parallel.model_parallel}
    if parallel.data_parallel % 2 == 0:
        yield {**wider, "parallel.data_parallel": parallel.data_parallel // 2}, tokens
    if preset.machine.device == "ascend":
        devices = {"machine.devices": 2 * preset.machine.devices}
        yield {**wider, **devices}, tokens
        if parallel.optimizer_shard and preset.task != "infer":
            yield {"parallel.data_parallel": 2 * parallel.data_parallel, **devices}, tokens
    shorter = min(tokens, model.seq_length) // 2
    while shorter >= _SHORTEST:
        yield {"model.seq_length": shorter}, shorter
        shorter //= 2


def _changed(preset: Preset, values: dict[str, Any]) -> Preset | None:
    """The preset with these values, or None when they break a rule."""
    whole = preset.model_dump()
    for key, value in values.items():
        *sections, last = key.split(".")
        section = whole
        for name in sections:
            section = section[name]
        section[last] = value
    try:
        return Preset.model_validate(whole, strict=True)
    except ValidationError:
        return None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
