"""How code below `cli` tells how far it is, without printing: the caller passes a `Progress`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Meter(Protocol):
    """One running piece of work."""

    def advance(self, amount: float = 1) -> None:
        """Add `amount` units of finished work."""

    def show(self, **fields: str) -> None:
        """Replace the values shown beside the bar, e.g. `show(loss="2.31", lr="3e-4")`."""


class Progress(Protocol):
    """Where a job reports to: bars on a terminal, plain lines in a log, or nowhere."""

    def track(self, what: str, total: float | None = None, unit: str = "") -> AbstractContextManager[Meter]:
        """Open a meter for `what` (`with progress.track(...) as meter:`); `total` None when it is unknown."""

    def note(self, text: str) -> None:
        """Say one line that stays."""


class _SilentMeter:
    def advance(self, amount: float = 1) -> None:
        pass

    def show(self, **fields: str) -> None:
        pass


class Silent:
    """A Progress that says nothing: the default of every library function."""

    @contextmanager
    def track(self, what: str, total: float | None = None, unit: str = "") -> Iterator[Meter]:
        yield _SilentMeter()

    def note(self, text: str) -> None:
        pass


SILENT = Silent()
