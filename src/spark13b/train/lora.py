"""What a LoRA run has instead of weights: a base that stays as it is, and adapters in its checkpoints."""

from __future__ import annotations

from pathlib import Path

from spark13b.ckpt import Checkpoint, open_checkpoint
from spark13b.ckpt.adapters import AdapterCard, card_of, open_adapters
from spark13b.ckpt.mapping import BESIDE_ADAPTERS, mapped_parameters
from spark13b.ckpt.quantized import QuantizedCheckpoint
from spark13b.config.model import SparkConfig
from spark13b.errors import InputError
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.names import match_names
from spark13b.model.native_training import choose_training
from spark13b.model.quantized import QuantizedLora, TrainedModel
from spark13b.model.transformer import Setup
from spark13b.progress import Progress
from spark13b.run_folder import RunFolder
from spark13b.train.base import base_path, newest_card
from spark13b.train.job import Job


def load_beside_base(
    job: Job, load: Path | None, run: RunFolder, config: SparkConfig, setup: Setup, progress: Progress
) -> tuple[TrainedModel, AdapterCard]:
    """A model on the base at `load` or, when a run goes on, where its checkpoints say; the adapters' card.

    The adapters begin as the preset's seed has it. A quantised base stays where it lies. Raises InputError when the
    base is gone, does not fit, or is not the model that the run began with.
    """
    before = newest_card(run) if job.resume else None
    path = base_path(load, before)
    if path is None:
        raise InputError("nothing says where the base model of the run is", where=run.path, fix="add --load BASE")
    with open_checkpoint(path) as base:
        model = model_on(base, config, setup)
        card = card_of(job.preset.model, job.preset.lora, base)
        other = before.other_weights(base) if before is not None else None
    if before is not None and before.base_fingerprint not in (None, card.base_fingerprint):
        raise InputError(
            "this is not the base model that the run began with",
            where=path,
            fix=f"add --load with that of {before.base_path}, or begin a new run",
        )
    if other is not None:
        progress.note(f"note: the run began {other}")
    model.begin_adapters(job.preset.train.seed)
    return model, card


def load_adapters(file: Path, model: TrainedModel) -> None:
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


def model_on(base: Checkpoint, config: SparkConfig, setup: Setup) -> TrainedModel:
    """The model of a checkpoint; a quantised one stays where it lies when the native library can compute it.

    Adapters of `setup` have no values yet. Raises InputError when names do not fit.
    """
    if isinstance(base, QuantizedCheckpoint) and choose_training(config, setup, rounded=True)[0] is not None:
        match_names(base.shapes(), config, where=base.path)
        return QuantizedLora(config, mapped_parameters(base, config, dict.fromkeys(base, BESIDE_ADAPTERS)), setup)
    model = SparkForCausalLM(config, seed=None, setup=setup)
    model.load_state(base)
    return model
