"""Run by a test in a process of its own: trains as the test does, and kills itself with SIGKILL.

killed_run.py ROWS EVAL_ROWS OUTPUT {step|saving} NUMBER [resume]: when step NUMBER begins, or while it is being saved.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from spark13b import files
from spark13b.train.run import Job, train
from train.small_run import evaluated_preset


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(rows: Path, eval_rows: Path, output: Path, point: str, number: int, resume: bool) -> None:
    finish = files._sync_tree

    def finish_or_die(path: Path) -> None:
        if point == "saving" and path.name == f"step-{number:08d}":
            die()  # all is written, nothing is in place
        finish(path)

    def begin_or_die(step: int) -> None:
        if point == "step" and step == number:
            die()

    files._sync_tree = finish_or_die
    train(Job(evaluated_preset(), rows, output, resume=resume, eval_data=eval_rows), on_step=begin_or_die)


if __name__ == "__main__":
    _, rows, eval_rows, output, point, number, *more = sys.argv
    main(Path(rows), Path(eval_rows), Path(output), point, int(number), bool(more))
