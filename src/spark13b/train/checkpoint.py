"""Saving where a run stands and going on from there: weights, Adam's state, position, loss scale.

A checkpoint is a folder that appears whole. `state.json` is written last and knows the size of every other file, so
that one which was damaged later (a full disk, a copy that broke off) is found out, and the one before it is taken.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from spark13b.ckpt import open_checkpoint
from spark13b.ckpt.adapters import AdapterCard, write_adapters
from spark13b.ckpt.layout import RANK_FILE, Layout
from spark13b.errors import InputError
from spark13b.files import write_text
from spark13b.model.causal_lm import SparkForCausalLM, set_parameter
from spark13b.model.quantized import TrainedModel
from spark13b.run_folder import RunFolder, step_of
from spark13b.train.base import ADAPTERS_FILE
from spark13b.train.lora import load_adapters
from spark13b.train.optimizer import AdamW
from spark13b.train.slices import write_part, written_together

_STATE = Path("state.json")
_OPTIMIZER, _DIVIDED_OPTIMIZER = Path("optimizer.ckpt"), Path("optimizer")
_PARTS = Path("parts")  # of adapters, until they are put together


@dataclass
class RunState:
    """Where a run stands. Which rows come next follows from `seed`, `rows` and `rows_done` alone."""

    seed: int
    rows: int  # of the file
    step_rows: int = 0  # rows of the last step; a run may go on with another number
    step: int = 0
    updates: int = 0  # steps that changed the weights
    tokens: int = 0
    rows_done: int = 0
    loss_scale: float = 1.0
    good_steps: int = 0
    smoothed_loss: float | None = None
    evaluated: int = 0  # the step of the last evaluation
    best_step: int | None = None
    best_loss: float | None = None

    @property
    def skipped(self) -> int:
        """Steps whose gradients overflowed."""
        return self.step - self.updates


def save(
    run: RunFolder,
    state: RunState,
    model: TrainedModel,
    optimizer: AdamW,
    keep: int,
    card: AdapterCard | None = None,
    wait: Callable[[], None] = lambda: None,
) -> Path:
    """Write the checkpoint after `state.step` steps; then drop all but the newest `keep` and the best.

    With the card of a LoRA run it holds the adapters instead of the weights. All processes of a run save together;
    `wait` returns when all have called it.
    """
    folder, mesh = run.checkpoint(state.step), model.setup.mesh
    folder.parent.mkdir(parents=True, exist_ok=True)
    shapes, layout = model.whole_shapes(), Layout(mesh.data.size, mesh.model.size)
    with written_together(folder, mesh, wait) as draft:
        write_part(draft if card is None else draft / _PARTS, model.trainable(), shapes, mesh, layout)
        states = {f"{sort}.{name}": shape for sort in ("adam_m", "adam_v", "master") for name, shape in shapes.items()}
        shards = Layout(mesh.data.size, mesh.model.size, any(optimizer.sharded))
        write_part(draft / _DIVIDED_OPTIMIZER, {one.name: one for one in optimizer.state()}, states, mesh, shards)
        wait()
        if mesh.world.index == 0:
            if card is not None:
                _put_together(draft / _PARTS, draft / ADAPTERS_FILE, card)
            if shards.distinct_ranks == 1:
                (draft / _DIVIDED_OPTIMIZER / RANK_FILE.format(0)).rename(draft / _OPTIMIZER)
                shutil.rmtree(draft / _DIVIDED_OPTIMIZER)
            files = (path for path in sorted(draft.rglob("*")) if path.is_file())
            sizes = {str(path.relative_to(draft)): path.stat().st_size for path in files}
            (draft / _STATE).write_text(_state_text(state, sizes), encoding="utf-8")
    if mesh.world.index == 0:
        _tidy(run, state, keep)
    return folder


def _put_together(parts: Path, file: Path, card: AdapterCard) -> None:
    """One file of all processes' parts of the adapters, which are small."""
    with open_checkpoint(parts) as whole:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_adapters(file, dict(whole), card)
    shutil.rmtree(parts)


def amend(run: RunFolder, state: RunState, keep: int) -> None:
    """Write `state` into the checkpoint that its step has already: an evaluation came after it."""
    folder = run.checkpoint(state.step)
    files = json.loads((folder / _STATE).read_text(encoding="utf-8"))["files"]
    write_text(folder / _STATE, _state_text(state, files), force=True)
    _tidy(run, state, keep)


def restore(run: RunFolder, model: TrainedModel, optimizer: AdamW, note: Callable[[str], None]) -> RunState | None:
    """Load the newest checkpoint that is whole; None when there is none yet.

    One that is damaged is passed over with a note. Raises InputError when all are, or none fits the model.
    """
    _remove_leftovers(run)
    passed_over: list[tuple[Path, InputError]] = []
    for folder in reversed(run.checkpoints()):
        try:
            state = _load(folder, model, optimizer)
        except InputError as error:
            passed_over.append((folder, error))
            continue
        for damaged, reason in passed_over:
            note(f"note: {damaged.name} is damaged ({reason.what}); going on from {folder.name}")
        _link_best(run, state)
        return state
    if passed_over:
        newest, refused = passed_over[0]
        if refused.fix != _cure(newest):
            raise refused
        fix = "no checkpoint of the run is whole: put its files back from a copy, or begin anew with --force"
        raise InputError(refused.what, where=refused.where, fix=fix)
    return None


def read_state(folder: Path) -> RunState:
    """The state of a checkpoint's folder. Raises InputError when a file of it is missing or not of its size."""
    path = folder / _STATE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        files = values.pop("files")
        state = RunState(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"the run's state cannot be read: {why}", where=path, fix=_cure(folder)) from error
    for name, size in files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = f"{name} is missing" if found is None else f"{name} has {found:,} bytes, not {size:,}"
            raise InputError(what, where=file, fix=_cure(folder))
    return state


def last_good(run: RunFolder) -> Path | None:
    """The newest checkpoint whose weights are all finite."""
    for folder in reversed(run.checkpoints()):
        try:
            with open_checkpoint(folder) as weights:
                if all(math.isfinite(float(np.sum(np.asarray(weights[name], np.float64)))) for name in weights):
                    return folder
        except InputError:
            continue
    return None


def _load(folder: Path, model: TrainedModel, optimizer: AdamW) -> RunState:
    state = read_state(folder)
    if model.setup.lora is not None:
        load_adapters(folder / ADAPTERS_FILE, model)
    else:
        assert isinstance(model, SparkForCausalLM)
        with open_checkpoint(folder) as weights:
            model.load_state(weights)
            optimizer.take_masters(weights)
    divided = (folder / _DIVIDED_OPTIMIZER).is_dir()
    with open_checkpoint(folder / (_DIVIDED_OPTIMIZER if divided else _OPTIMIZER)) as arrays:
        for parameter in optimizer.state():
            if parameter.name not in arrays and parameter.name.startswith("master."):
                continue  # the run began without them
            if parameter.name not in arrays:
                raise InputError(
                    f"the optimizer state lacks {parameter.name}",
                    where=arrays.path,
                    fix="resume with the preset that the run began with, or begin anew with --load",
                )
            set_parameter(parameter, optimizer.part_of(parameter.name, arrays[parameter.name]))
    return state


def _state_text(state: RunState, files: dict[str, int]) -> str:
    return json.dumps({**asdict(state), "files": files}, indent=2)


def _tidy(run: RunFolder, state: RunState, keep: int) -> None:
    """Point to the best checkpoint and drop what is neither it nor among the newest, and what lies ahead of `state`.

    What lies ahead was written before the run went on from an older checkpoint, the newer ones being damaged.
    """
    _link_best(run, state)
    best = None if state.best_step is None else run.checkpoint(state.best_step)
    past = [folder for folder in run.checkpoints() if step_of(folder) <= state.step]
    for folder in run.checkpoints():
        if folder not in past[-keep:] and folder != best:
            shutil.rmtree(folder)


def _link_best(run: RunFolder, state: RunState) -> None:
    """Make `checkpoints/best` what `state` says."""
    target = None if state.best_step is None else run.checkpoint(state.best_step)
    if target is None or not target.is_dir():
        run.best.unlink(missing_ok=True)
        return
    if run.best.is_symlink() and run.best.readlink() == Path(target.name):
        return
    new = run.best.with_name(".best.part")
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    new.replace(run.best)


def _remove_leftovers(run: RunFolder) -> None:
    """Remove what `files.replacing` was writing when the run was killed."""
    for folder in (run.path, run.best.parent, *run.checkpoints()):
        for left in folder.glob(".*.part") if folder.is_dir() else ():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)


def _cure(folder: Path) -> str:
    return f"delete {folder} to go on from the checkpoint before it"
