"""The folder a training run lives in: what `train` writes there and `infer` and `--resume` find again.

preset.yaml               the resolved preset; runs again from there
environment.json          every start of the run: versions, machine, command, data
tokenizer/                the tokenizer of the rows
metrics.jsonl, loss.png   a line a step and an evaluation, and the curve
tensorboard/              the same numbers as events
logs/                     what each worker of a run of several processes says
checkpoints/step-00000050/rank_0/model.ckpt   the weights, complete; where devices share the model rank_1/, ... and
                                              spark13b-slices.json, which tells how they are cut, as of `ckpt split`
                                              of a LoRA run rank_0/adapters.safetensors, which names its base
                         optimizer.ckpt       Adam's state; or optimizer/rank_0/, ... with the same manifest
                         state.json           where the run stands; written last
checkpoints/best          a link to the checkpoint with the smallest loss in an evaluation
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from spark13b.errors import InputError
from spark13b.files import replacing, write_text

SLICES_MANIFEST = "spark13b-slices.json"  # beside rank_0/, rank_1/, ...: how their tensors are cut
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class RunFolder:
    """The names inside one run's folder."""

    path: Path

    @property
    def preset(self) -> Path:
        return self.path / "preset.yaml"

    @property
    def tokenizer(self) -> Path:
        """A folder of its own, or this one: 'spark13b export --format safetensors' puts it where other tools look."""
        own = self.path / "tokenizer"
        return self.path if (self.path / "tokenizer.model").is_file() and not own.exists() else own

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        return self.path / "loss.png"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self.path / "checkpoints" / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """The folders of all checkpoints, oldest first."""
        folder = self.path / "checkpoints"
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(child for child in found if _STEP.fullmatch(child.name) and child.is_dir())

    def is_run(self) -> bool:
        """Whether a training run was started here."""
        return self.preset.is_file()


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    match = _STEP.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def run_around(path: Path) -> RunFolder | None:
    """The run that `path` is or lies in (a checkpoint of it, for example)."""
    for folder in (path, *path.absolute().parents[:4]):
        if RunFolder(folder).is_run():
            return RunFolder(folder)
    return None


def preset_for(preset: str | None, load: Path, adapter: Path | None) -> tuple[str, RunFolder | None]:
    """The preset that was named, else that of the run around the weights or the adapters; and that run, if any.

    Raises InputError when there is neither, and when a path does not exist.
    """
    for path, option in ((load, "--load"), (adapter, "--adapter")):
        if path is not None and not path.exists():
            raise InputError("there is no such checkpoint", where=path, fix=f"check {option}")
    run = run_around(load) or (run_around(adapter) if adapter is not None else None)
    if preset is not None:
        return preset, run
    if run is None:
        raise InputError(
            "no preset was given, and the checkpoint is not in a run's folder",
            where=load,
            fix="add --preset NAME; 'spark13b preset list' shows them",
        )
    return str(run.preset), run


def take_along(source: Path, target: Path) -> RunFolder | None:
    """Copy preset and tokenizer of the run around the weights `source` into the folder of weights `target`.

    `--load target` then finds them. Returns the run; None where there is none, or `target` is a file, or in a run.
    """
    run = run_around(source)
    if run is None or not target.is_dir() or run_around(target) is not None:
        return None
    if run.tokenizer.is_dir():
        with replacing(target / "tokenizer", force=True) as draft:
            draft.mkdir()
            for file in run.tokenizer.glob("tokenizer.*"):
                shutil.copyfile(file, draft / file.name)
    write_text(target / run.preset.name, run.preset.read_text(encoding="utf-8"), force=True)
    return run


def weights_of(path: Path) -> Path:
    """The weights that the user means by `path`: those of a run's newest checkpoint, of a checkpoint, or `path`."""
    run = RunFolder(path)
    if run.is_run() and run.checkpoints():
        path = run.checkpoints()[-1]
    # beside the weights lies the optimizer's state
    whole = (path / "state.json").is_file() and not (path / SLICES_MANIFEST).is_file()
    return path / "rank_0" if whole else path
