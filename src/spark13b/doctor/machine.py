"""CPU, memory and disk, with the limits of a container."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from spark13b.doctor.findings import Finding

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")
_LITTLE_MEMORY, _TOO_LITTLE_MEMORY = 4 * _GIB, _GIB  # the demo takes 2 GiB
_LITTLE_DISK, _TOO_LITTLE_DISK = 10 * _GIB, _GIB
_LITTLE_SHARED = 64 * 2**20  # what docker gives without --shm-size; MindSpore's data workers use more


def cpu() -> Iterator[Finding]:
    """The processor, and how many cores this process may use."""
    cores = usable_cores()
    total = os.cpu_count() or cores
    of = f" of {total}" if cores < total else ""
    found = f"{_cpu_model()}, {cores}{of} cores"
    if cores < 2:
        yield Finding("cpu", "warn", found, "give the process or container two cores or more: one makes all slow")
    else:
        yield Finding("cpu", "ok", found)


def memory() -> Iterator[Finding]:
    """What there is, what is free, and a container's limit when it is less."""
    now = psutil.virtual_memory()
    limit = memory_limit()
    free = min(now.available, limit - _cgroup_number("memory.current", 0)) if limit is not None else now.available
    found = f"{gib(now.total)}, {gib(free)} free" + ("" if limit is None else f", this container may use {gib(limit)}")
    if free < _TOO_LITTLE_MEMORY:
        yield Finding("memory", "fail", found, "end other programs: the smallest model needs 1 GiB")
    elif free < _LITTLE_MEMORY:
        yield Finding("memory", "warn", found, "enough for the demo's model, not for much more; end other programs")
    else:
        yield Finding("memory", "ok", found)


def disk() -> Iterator[Finding]:
    """Free space where outputs, temporary files and MindSpore's shared memory go."""
    here = Path.cwd()
    yield _disk("disk", here, "here")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        if free < _LITTLE_SHARED:
            fix = "start the container with a larger --shm-size: MindSpore's data workers need it"
            yield Finding("disk", "warn", f"{gib(free)} of shared memory are free in {shared}", fix)


def usable_cores() -> int:
    """The cores that this process may run on, a container's quota counted in."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def memory_limit() -> int | None:
    """Bytes that this container may use, when that is less than the machine has."""
    limit = _cgroup_number("memory.max", 0)
    return limit if 0 < limit < psutil.virtual_memory().total else None


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB else f"{size / 2**20:,.0f} MiB"


def _disk(name: str, folder: Path, where: str) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{gib(free)} free {where} ({folder})"
    if not os.access(folder, os.W_OK):
        return Finding(name, "warn", f"{found}, and it cannot be written to", "work in a folder of your own")
    if free < _TOO_LITTLE_DISK:
        return Finding(name, "fail", found, "free some space, or work in a folder on another disk")
    if free < _LITTLE_DISK:
        fix = "enough for small models; a checkpoint of 13B with its optimizer takes 160 GB"
        return Finding(name, "warn", found, fix)
    return Finding(name, "ok", found)


def _cgroup_number(name: str, otherwise: int) -> int:
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):  # no such controller, or "max"
        return otherwise


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()
