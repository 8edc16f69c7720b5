"""Saving where a run stands and going on from there: weights, Adam's state, position, loss scale."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.errors import InputError
from spark13b.files import replacing
from spark13b.model.causal_lm import SparkForCausalLM, set_parameter
from spark13b.run_folder import RunFolder, step_of
from spark13b.train.optimizer import AdamW

_WEIGHTS, _OPTIMIZER, _STATE = Path("rank_0", "model.ckpt"), Path("optimizer.ckpt"), Path("state.json")


@dataclass(frozen=True)
class RunState:
    """Where a run stands after `step` steps. The order of the rows follows from `seed` and `step`."""

    step: int
    updates: int  # steps that changed the weights
    tokens: int
    loss_scale: float
    good_steps: int
    seed: int
    rows: int
    batch_size: int


def save(run: RunFolder, state: RunState, model: SparkForCausalLM, optimizer: AdamW, keep: int) -> Path:
    """Write the checkpoint after `state.step` steps, whole or not at all; then drop all but the newest `keep`."""
    folder = run.checkpoint(state.step)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder, force=True) as draft:
        (draft / _WEIGHTS).parent.mkdir(parents=True)
        write_checkpoint(draft / _WEIGHTS, _arrays(model.weights().items()))
        moments = [(parameter.name, parameter) for parameter in (*optimizer.m, *optimizer.v)]
        write_checkpoint(draft / _OPTIMIZER, _arrays(moments))
        (draft / _STATE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
    for old in run.checkpoints()[:-keep]:
        shutil.rmtree(old)
    return folder


def restore(folder: Path, model: SparkForCausalLM, optimizer: AdamW) -> RunState:
    """Load a checkpoint of `save`. Raises InputError when a part is missing or broken."""
    state = read_state(folder)
    with open_checkpoint(folder / _WEIGHTS.parent) as weights:
        model.load_state(weights)
    with open_checkpoint(folder / _OPTIMIZER) as moments:
        for parameter in (*optimizer.m, *optimizer.v):
            if parameter.name not in moments:
                raise InputError(
                    f"the optimizer state lacks {parameter.name}",
                    where=folder / _OPTIMIZER,
                    fix="resume with the preset that the run began with, or begin anew with --load",
                )
            set_parameter(parameter, moments[parameter.name])
    return state


def read_state(folder: Path) -> RunState:
    """The state of a checkpoint's folder."""
    path = folder / _STATE
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"the run's state cannot be read: {error}",
            where=path,
            fix=f"delete {folder} to go on from the checkpoint before it",
        ) from error


def newest(run: RunFolder) -> Path:
    """The newest checkpoint to resume from. Raises InputError when there is none."""
    found = run.checkpoints()
    if not found:
        raise InputError("there is no checkpoint to resume from", where=run.path, fix="leave out --resume")
    return max(found, key=step_of)


def _arrays(parameters: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    for name, parameter in parameters:
        yield name, parameter.asnumpy()
