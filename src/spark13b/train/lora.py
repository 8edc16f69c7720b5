"""What a LoRA run has instead of weights: a base that stays as it is, and adapters in its checkpoints."""

from __future__ import annotations

from pathlib import Path

from spark13b.ckpt import open_checkpoint
from spark13b.ckpt.adapters import ADAPTERS, AdapterCard, card_of, open_adapters
from spark13b.errors import InputError
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.run_folder import RunFolder
from spark13b.train.job import Job

ADAPTERS_FILE = Path("rank_0", ADAPTERS)  # in a checkpoint's folder


def load_base(model: SparkForCausalLM, job: Job, load: Path | None, run: RunFolder) -> AdapterCard:
    """Load the base, from `load` or, when a run goes on, from where its checkpoints say it is; the adapters' card.

    Raises InputError when it is gone, does not fit, or is not the model that the run began with.
    """
    before = _card(run) if job.resume else None
    path = load or (Path(before.base_path) if before is not None and before.base_path else None)
    if path is None:
        raise InputError("nothing says where the base model of the run is", where=run.path, fix="add --load BASE")
    if not path.exists():
        if load is not None:
            raise InputError(
                "there is no base model there", where=path, fix="give --load a run, a checkpoint or its folder"
            )
        raise InputError("the base model of the run is gone", where=path, fix="add --load BASE")
    with open_checkpoint(path) as base:
        model.load_state(base)
        card = card_of(job.preset.model, job.preset.lora, base)
    if before is not None and before.base_fingerprint not in (None, card.base_fingerprint):
        raise InputError(
            "this is not the base model that the run began with",
            where=path,
            fix=f"add --load with that of {before.base_path}, or begin a new run",
        )
    return card


def load_adapters(file: Path, model: SparkForCausalLM) -> None:
    """Load the adapters of a checkpoint. Raises InputError when the preset's lora section is another one now."""
    with open_adapters(file) as adapters:
        now = model.setup.lora
        assert now is not None
        for key in ("rank", "alpha", "targets"):
            before, after = getattr(adapters.lora, key), getattr(now, key)
            if before != after:
                raise InputError(
                    f"the run began with lora.{key} {before}, now it is {after}",
                    where=file,
                    fix="resume with what it began with, or begin a new run",
                )
        model.load_adapters(adapters.tensors)


def _card(run: RunFolder) -> AdapterCard | None:
    """What the newest readable checkpoint of the run says about its adapters."""
    for folder in reversed(run.checkpoints()):
        try:
            with open_adapters(folder / ADAPTERS_FILE) as adapters:
                return adapters.card
        except InputError:
            continue
    return None
