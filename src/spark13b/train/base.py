"""The base of a LoRA run: where it is, and what a plan must know of it. Plain Python: MindSpore is not loaded."""

from __future__ import annotations

from pathlib import Path

from spark13b.ckpt import open_checkpoint
from spark13b.ckpt.adapters import ADAPTERS, AdapterCard, open_adapters
from spark13b.ckpt.quantized import QuantizedCheckpoint, need_quantized
from spark13b.errors import InputError
from spark13b.model.names import match_names
from spark13b.model.native_choice import need_native
from spark13b.run_folder import RunFolder
from spark13b.train.job import Job
from spark13b.train.rounded import RoundedBase

ADAPTERS_FILE = Path("rank_0", ADAPTERS)  # in a checkpoint's folder


def base_path(load: Path | None, before: AdapterCard | None) -> Path | None:
    """The base named by `load` or, when a run goes on, by its card; None when nothing names it.

    Raises InputError when the card's is not there any more.
    """
    path = load or (Path(before.base_path) if before is not None and before.base_path else None)
    if path is None or load is not None or path.exists():  # who opens `load` says when it is not there
        return path
    raise InputError("the base model of the run is gone", where=path, fix="add --load BASE")


def newest_card(run: RunFolder) -> AdapterCard | None:
    """What the newest readable checkpoint of the run says about its adapters."""
    for folder in reversed(run.checkpoints()):
        try:
            with open_adapters(folder / ADAPTERS_FILE) as adapters:
                return adapters.card
        except InputError:
            continue
    return None


def rounded_base(job: Job) -> RoundedBase | None:
    """What the plan of a LoRA run must know of its base when that is quantised, else None.

    Raises InputError when the base does not fit, or the native library cannot train beside a quantised one here.
    """
    preset = job.preset
    if preset.task != "lora":
        return None
    path = base_path(job.load, newest_card(RunFolder(job.output)) if job.resume else None)
    if path is None:
        return None
    with open_checkpoint(path) as base:
        need_quantized(base, preset.model.weight_bits)
        match_names(base.shapes(), preset.model, where=base.path)
        if not isinstance(base, QuantizedCheckpoint):
            return None
        shared = preset.parallel.model_parallel
        need_native(preset.model, preset.machine.device, path, model_parallel=shared, lora=preset.lora)
        return RoundedBase.of(base, preset.model)
