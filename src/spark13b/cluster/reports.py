"""What a worker tells its launcher, in small files of one folder: steps, error, result. Progress is in relay.py.

worker_3.step        {"step": 120, "begun": 20, "signs": 25}, replaced at every step
worker_3.error       what the worker failed with, and when
worker_3.result      what its command returned
worker_3.progress.0  lines for the terminal; .1 follows when it is full
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spark13b.errors import InputError, SparkError

Kind = Literal["input", "job", "interrupted", "unexpected"]


@dataclass(frozen=True)
class Heartbeat:
    """How far a worker is. `begun`: how many steps it began; `signs`: grows whenever it does anything."""

    step: int | None = None
    begun: int = 0
    signs: int = 0


@dataclass(frozen=True)
class ErrorReport:
    """An error of a worker; `time` in seconds since 1970, by the worker's clock."""

    kind: Kind
    what: str
    where: str | None
    line: int | None
    fix: str | None
    time: float

    @staticmethod
    def of(error: BaseException) -> ErrorReport:
        """The report of an exception."""
        now = time.time()
        if isinstance(error, SparkError):
            kind: Kind = "input" if isinstance(error, InputError) else "job"
            return ErrorReport(kind, error.what, error.where, error.line, error.fix, now)
        if isinstance(error, KeyboardInterrupt):
            return ErrorReport("interrupted", "stopped before the end", None, None, None, now)
        if isinstance(error, MemoryError):
            return ErrorReport("job", "out of memory", None, None, "use a smaller batch or sequence length", now)
        first_line = (str(error).strip().splitlines() or ["no message"])[0]
        return ErrorReport("unexpected", f"unexpected {type(error).__name__}: {first_line}", None, None, None, now)


class Reports:
    """The files of one worker in `folder`: the worker writes them, the launcher reads them."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.rank = rank
        self.progress = folder / f"worker_{rank}.progress"
        self._step = folder / f"worker_{rank}.step"
        self._error = folder / f"worker_{rank}.error"
        self._result = folder / f"worker_{rank}.result"
        self._heartbeat = Heartbeat()

    def begin_step(self, step: int) -> None:
        """Say that step `step` begins: that of the run, not of the process."""
        before = self._heartbeat
        self._heartbeat = Heartbeat(step, before.begun + 1, before.signs + 1)
        _write(self._step, asdict(self._heartbeat))

    def show_life(self) -> None:
        """Say that something other than a step goes on: an evaluation, a checkpoint."""
        self._heartbeat = replace(self._heartbeat, signs=self._heartbeat.signs + 1)
        _write(self._step, asdict(self._heartbeat))

    def write_error(self, error: BaseException) -> None:
        """Say what the worker fails with."""
        _write(self._error, asdict(ErrorReport.of(error)))

    def write_result(self, result: dict[str, Any]) -> None:
        """Say what the command returned: values that JSON can hold."""
        _write(self._result, result)

    def heartbeat(self) -> Heartbeat:
        """How far the worker is; a fresh Heartbeat when it has not said anything."""
        values = _read(self._step)
        return Heartbeat(**values) if values else Heartbeat()

    def error(self) -> ErrorReport | None:
        """What the worker failed with, if it said so."""
        values = _read(self._error)
        return ErrorReport(**values) if values else None

    def result(self) -> dict[str, Any] | None:
        """What the worker's command returned, if it did."""
        return _read(self._result)


def _write(path: Path, values: dict[str, Any]) -> None:
    """Replace a report; a reader sees the old one or the new one. Not synced to the disk: it outlives nothing."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    draft.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return values
