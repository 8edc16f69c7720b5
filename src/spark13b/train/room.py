"""Whether the disk has room for the checkpoints of a run: found out before the first step, not after hours."""

from __future__ import annotations

import math
import shutil

from spark13b.ckpt.metering import amount
from spark13b.errors import JobError
from spark13b.model.quantized import TrainedModel
from spark13b.run_folder import RunFolder
from spark13b.train.optimizer import AdamW


def checkpoint_bytes(model: TrainedModel, optimizer: AdamW) -> int:
    """Bytes of one checkpoint: what is trained and the optimizer's state, of all processes together."""
    numbers = {name: math.prod(shape) for name, shape in model.whole_shapes().items()}
    weights = sum(numbers[name] * one.itemsize for name, one in model.trainable().items())
    state = sum(numbers[one.name.partition(".")[2]] * one.itemsize for one in optimizer.state())
    return weights + state


def saves_until(step: int, steps: int, save_every: int | None, eval_every: int | None = None) -> int:
    """How often a run saves at most after `step` steps until `steps`: every `save_every` steps, and at the end.

    `eval_every`: it is evaluated so often, too, and saves what is better than before.
    """
    periods = [every for every in (save_every, eval_every) if every]
    counts = [steps // every - step // every for every in periods]
    both = math.lcm(*periods)
    twice = steps // both - step // both if len(periods) == 2 else 0
    return sum(counts) - twice + all(steps % every for every in periods)


def new_checkpoints(there: int, saves: int, keep: int) -> int:
    """How many checkpoints more than the `there` ones lie on the disk at most: a new one before the oldest goes."""
    return max(1, min(keep, there + saves - 1) + 1 - there)


def check_room(run: RunFolder, needed: int, count: int, *, freed: int = 0) -> None:
    """Raise JobError when the disk of `run` has no room for `count` checkpoints, `needed` bytes each.

    `freed` bytes are there as well, once what they hold has been replaced.
    """
    folder = run.path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free + freed
    if count * needed > free:
        fewer = "; with a smaller train.keep_checkpoints fewer lie there at once" if count > 2 else ""
        raise JobError(
            f"the disk has not enough room for the run's checkpoints: {count} x {amount(needed)} needed, "
            f"{amount(free)} free",
            where=folder,
            fix=f"free some space, or choose an --output on another disk{fewer}",
        )


def size_of(run: RunFolder) -> int:
    """Bytes of the files of a run."""
    return sum(path.lstat().st_size for path in run.path.rglob("*") if path.is_file() and not path.is_symlink())
