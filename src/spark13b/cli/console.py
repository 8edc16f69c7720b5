"""Where words go: results to stdout, everything else to stderr; a live view on a terminal, plain lines otherwise."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from spark13b.cli.meters import LineMeter, duration
from spark13b.progress import Meter

if TYPE_CHECKING:
    from spark13b.cli.live import LiveView

__all__ = ["TerminalProgress", "duration", "print_json", "stderr", "stdout"]


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
    """A `spark13b.progress.Progress` on stderr (or on `console`)."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or stderr()
        self._view: LiveView | None = None

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    @contextmanager
    def track(self, what: str, total: float | None = None, unit: str = "") -> Iterator[Meter]:
        if not self._console.is_terminal:
            yield LineMeter(lambda line: self._console.print(line, markup=False), what, total, unit)
            return
        if self._view is None:
            from spark13b.cli.live import LiveView

            self._view = LiveView(self._console)
        with self._view.meter(what, total, unit) as meter:
            yield meter
