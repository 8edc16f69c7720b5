"""Whether a preset fits this machine: its device, chip, number of devices, and memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psutil

from spark13b.config import Preset
from spark13b.doctor.ascend import Npu
from spark13b.doctor.findings import Finding
from spark13b.doctor.machine import gib, memory_limit, usable_cores
from spark13b.errors import InputError
from spark13b.train.plan import Plan, make_plan


def fit(preset: Preset, npus: Sequence[Npu], seen: str | None, count: int, chip: str | None) -> Iterator[Finding]:
    """The preset against the machine; `seen` is the device that MindSpore uses (None: unknown), `count` its NPUs."""
    machine = preset.machine
    here = min(machine.devices, machine.devices_per_node)
    if machine.device == "ascend" and not npus and seen != "ascend":
        fix = f"run it on an {machine.name}, or choose a cpu preset; 'spark13b train --dry-run' plans it from here, too"
        yield Finding("preset", "fail", f"it is made for {here} x {machine.chip}; there is no NPU here", fix)
    elif machine.device == "ascend":
        yield _npus(preset, npus, count, chip, here)
    else:
        yield _cpu(here)
    try:
        plan = make_plan(preset)
    except InputError as error:
        yield Finding("preset", "fail", error.what, error.fix or "")
        return
    yield _memory(preset, plan, npus, here)


def _npus(preset: Preset, npus: Sequence[Npu], count: int, chip: str | None, here: int) -> Finding:
    machine = preset.machine
    chips = {npu.chip for npu in npus} or ({chip} if chip else set())
    number = count or len(npus)
    if chips and chips != {machine.chip}:
        fix = f"choose a preset for {', '.join(sorted(chips))}; 'spark13b preset list' shows them"
        return Finding("preset", "fail", f"it is made for {machine.chip}, here are {', '.join(sorted(chips))}", fix)
    if number < here:
        fix = f"divide it otherwise (parallel.data_parallel, parallel.model_parallel, machine.devices={number})"
        return Finding("preset", "fail", f"it needs {here} NPUs of this machine, which has {number}", fix)
    machines = machine.devices // here
    several = f", on each of {machines} machines" if machines > 1 else ""
    return Finding("preset", "ok", f"{here} x {machine.chip} of {number} here{several}")


def _cpu(processes: int) -> Finding:
    cores = usable_cores()
    what = f"{processes} process{'es' * (processes != 1)} on {cores} cores"
    if processes > cores:
        return Finding("preset", "warn", what, "it runs, but slowly: choose fewer with --nproc")
    return Finding("preset", "ok", what)


def _memory(preset: Preset, plan: Plan, npus: Sequence[Npu], here: int) -> Finding:
    need, limit = plan.memory.total, plan.memory_limit
    of = "" if limit is None else f" of the {gib(limit)} it may use"
    found = f"a device needs {gib(need)}{of}"
    if preset.machine.device == "cpu":
        free = psutil.virtual_memory().available
        own = memory_limit()
        most = free if own is None else min(free, own)
        if need * here > most:
            fix = "end other programs, or give the container more memory"
            return Finding("preset", "fail", f"{found}; {here} of them and {gib(most)} are free", fix)
        return Finding("preset", "ok", found)
    sizes = [npu.memory * 2**20 for npu in npus if npu.memory]
    if sizes and (limit or need) > min(sizes):
        fix = f"choose a preset for smaller devices, or --set machine.max_device_memory_gb={min(sizes) // 2**30 - 2}"
        return Finding("preset", "fail", f"{found}, and the NPUs here have {gib(min(sizes))}", fix)
    return Finding("preset", "ok", found)
