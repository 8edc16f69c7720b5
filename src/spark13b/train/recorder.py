"""What a run says about itself in its folder: metrics.jsonl, TensorBoard events, the loss curve."""

from __future__ import annotations

import json
import math
import time
from types import TracebackType
from typing import Any, Self

from spark13b.files import write_text
from spark13b.run_folder import RunFolder
from spark13b.train.curve import draw_curve
from spark13b.train.events import Events
from spark13b.train.job import Evaluation

_DRAW_EVERY_SECONDS = 60.0  # the curve of a run that goes on


class Recorder:
    """Records of a run that stands after `step` steps; what an earlier start recorded beyond them is taken back.

    `evaluated`: the step of the last evaluation that counts.
    """

    def __init__(self, run: RunFolder, step: int, evaluated: int) -> None:
        self._run, self._drawn = run, time.monotonic()
        kept = _kept(run, step, evaluated)
        write_text(run.metrics, "".join(kept), force=True)
        self._metrics = run.metrics.open("a", encoding="utf-8")
        self._events = Events(run.tensorboard, step + 1)

    def step(self, record: dict[str, Any]) -> None:
        """A step; its keys become the tags train/KEY."""
        self._write(record)
        self._scalars("train", record)

    def evaluation(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        """An evaluation after `step` steps: eval_loss and so on in the metrics, tags eval/KEY."""
        record = {**evaluation.as_dict(), "seconds": round(seconds, 3)}
        self._write({"step": step, **{f"eval_{key}": value for key, value in record.items()}})
        self._scalars("eval", {"step": step, **record})

    def failure(self, record: dict[str, Any]) -> None:
        """The step that ended the run, with all its row numbers."""
        self._write(record)

    def before_checkpoint(self) -> None:
        """Have everything in the files that a run going on from here will not say again; draw the curve, too."""
        self._events.flush()
        if time.monotonic() - self._drawn >= _DRAW_EVERY_SECONDS:
            draw_curve(self._run)
            self._drawn = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()
        self._events.close()
        draw_curve(self._run)

    def _write(self, record: dict[str, Any]) -> None:
        self._metrics.write(json.dumps({key: _plain(value) for key, value in record.items()}) + "\n")
        self._metrics.flush()

    def _scalars(self, group: str, record: dict[str, Any]) -> None:
        for key, value in record.items():
            if key != "step" and _plain(value) is not None:
                self._events.add(f"{group}/{key}", float(value), record["step"])


class NoRecorder:
    """The recorder of every process but the first: the files are the first one's."""

    def step(self, record: dict[str, Any]) -> None:
        pass

    def evaluation(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        pass

    def failure(self, record: dict[str, Any]) -> None:
        pass

    def before_checkpoint(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _kept(run: RunFolder, step: int, evaluated: int) -> list[str]:
    """The lines of the metrics that the run goes on from."""
    kept: list[str] = []
    if not run.metrics.exists():
        return kept
    for line in run.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            last = evaluated if "eval_loss" in record else step
            if record["step"] <= last:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break  # the last line of a killed run
    return kept


def _plain(value: Any) -> Any:
    """JSON knows neither inf nor nan: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
