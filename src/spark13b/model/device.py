"""Where the model runs and how: the only place that sets MindSpore's context."""

from __future__ import annotations

import gc
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spark13b.errors import InputError
from spark13b.model.mesh import check_processes

if TYPE_CHECKING:
    from spark13b.config.model import SparkConfig
    from spark13b.config.preset import Preset

Device = Literal["cpu", "ascend"]
_DRIVER = Path("/dev/davinci_manager")


@cache
def device() -> Device:
    """The device of this process: `ascend` when MindSpore sees one, else `cpu`. Puts MindSpore into graph mode.

    SPARK13B_DEVICE=cpu forces the CPU of a machine that has both.
    """
    import mindspore

    found: Device = "cpu" if cpu_is_forced() or not _sees_ascend(mindspore) else "ascend"
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_device("Ascend" if found == "ascend" else "CPU")
    # O1 runs small operators 1.5 times faster than O0 on a CPU (shared/SPEC.md, section 12)
    mindspore.set_context(jit_level="O1")
    # MindSpore's modules are for good, and each compilation's collections would look at all their objects: an eighth
    gc.freeze()
    return found


def surely_cpu() -> bool:
    """Whether `device` would say `cpu`; MindSpore is not asked, and not loaded."""
    return cpu_is_forced() or not _DRIVER.exists()


def cpu_is_forced() -> bool:
    """Whether SPARK13B_DEVICE says so. Raises InputError for another word, which is misspelt and would do nothing."""
    wanted = os.environ.get("SPARK13B_DEVICE", "").lower()
    if wanted not in ("", "cpu"):
        raise InputError(
            f"SPARK13B_DEVICE={wanted} is not cpu",
            where="the environment variable SPARK13B_DEVICE",
            fix="set it to cpu to leave NPUs alone, or unset it",
        )
    return wanted == "cpu"


def check_machine(preset: Preset) -> None:
    """Raise InputError when `preset` is made for several devices, or for an NPU that is not here."""
    check_processes(preset.parallel)
    if preset.machine.device == "ascend" and (surely_cpu() or device() != "ascend"):
        raise no_npu()
    limit_memory(preset.machine.max_device_memory_gb)


def check_types(config: SparkConfig, on: Device | None = None) -> None:
    """Raise InputError when MindSpore cannot compute in the types of `config` `on` a device; None: this process's."""
    if (on or device()) == "cpu" and config.compute_type == "bfloat16":
        raise InputError(
            "MindSpore has no bfloat16 matrix products on a CPU",  # of version 2.9, measured
            where="model.compute_type",
            fix="write float32, or use the native library, which has them ('spark13b native build')",
        )


def check_driver(preset: Preset) -> None:
    """Raise InputError when `preset` is made for an NPU and this machine has no driver; does not load MindSpore.

    For a process that starts others: MindSpore would take a device.
    """
    if preset.machine.device == "ascend" and not _DRIVER.exists():
        raise no_npu()


def no_npu() -> InputError:
    """There is no Ascend here."""
    return InputError(
        "the preset is made for an Ascend NPU, and MindSpore sees none here",
        where="machine.device",
        fix="choose a cpu preset; 'spark13b preset list' shows them",
    )


def limit_memory(gigabytes: float | None) -> None:
    """Let MindSpore take at most so much of an Ascend's memory; a CPU's is the operating system's to give."""
    if gigabytes is not None and not surely_cpu() and device() == "ascend":
        import mindspore

        mindspore.runtime.set_memory(max_size=f"{gigabytes:g}GB")


def dtype(name: str) -> Any:
    """The MindSpore type of a config's type name."""
    import mindspore

    return getattr(mindspore, name)


def _sees_ascend(mindspore: Any) -> bool:
    if not _DRIVER.exists():  # no driver; asking MindSpore would print a failed library load
        return False
    try:
        return bool(mindspore.hal.is_available("Ascend")) and mindspore.hal.device_count("Ascend") > 0
    except (RuntimeError, ValueError, TypeError):  # a wheel without the Ascend plugin says so in one of these
        return False
