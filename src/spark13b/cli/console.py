"""Where words go: results to stdout, everything else to stderr; bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from spark13b.progress import Meter

_LINE_EVERY_SECONDS = 5.0  # how often a job that is not on a terminal says how far it is


def stderr() -> Console:
    """The console for progress, notes and logs. Long lines are not folded when they go into a file."""
    return Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)


def stdout() -> Console:
    """The console for results meant for a person."""
    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, for programs."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


class TerminalProgress:
    """A `spark13b.progress.Progress` on stderr."""

    def __init__(self) -> None:
        self._console = stderr()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    @contextmanager
    def track(self, what: str, total: float | None = None, unit: str = "") -> Iterator[Meter]:
        if self._console.is_terminal:
            with self._bar(what, total, unit) as meter:
                yield meter
        else:
            yield _LineMeter(self._console, what, total, unit)

    @contextmanager
    def _bar(self, what: str, total: float | None, unit: str) -> Iterator[Meter]:
        from rich import progress as bars

        columns = [
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=20),
            bars.TextColumn("{task.fields[count]}"),
            bars.TextColumn("{task.fields[shown]}"),
            bars.TimeRemainingColumn(compact=True),
        ]
        with bars.Progress(*columns, console=self._console, transient=False) as live:
            yield _BarMeter(live, live.add_task(what, total=total, count="", shown=""), total, unit)


class _BarMeter:
    def __init__(self, live: Any, task: Any, total: float | None, unit: str) -> None:
        self._live, self._task, self._total, self._unit = live, task, total, unit
        self._done = 0.0

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        self._live.update(self._task, advance=amount, count=_count(self._done, self._total, self._unit))

    def show(self, **fields: str) -> None:
        self._live.update(self._task, shown=_fields(fields))


class _LineMeter:
    def __init__(self, console: Console, what: str, total: float | None, unit: str) -> None:
        self._console, self._what, self._total, self._unit = console, what, total, unit
        self._done, self._shown = 0.0, ""
        self._start = self._last = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        now = time.monotonic()
        finished = self._total is not None and self._done >= self._total
        if finished or now - self._last >= _LINE_EVERY_SECONDS:
            self._last = now
            line = f"{self._what}: {_count(self._done, self._total, self._unit)} {self._shown}".rstrip()
            if self._total and not finished:
                left = (now - self._start) * (self._total - self._done) / max(self._done, 1e-9)
                line += f" left {duration(left)}"
            self._console.print(line, markup=False)

    def show(self, **fields: str) -> None:
        self._shown = _fields(fields)


def _fields(fields: dict[str, str]) -> str:
    return " ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields.items())


def _count(done: float, total: float | None, unit: str) -> str:
    text = f"{done:,.0f}" if total is None else f"{done:,.0f}/{total:,.0f}"
    return f"{text} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as people say them: 42s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
