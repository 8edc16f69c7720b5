"""How far a piece of work is, and how long it will take; shown as plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_LINE_EVERY_SECONDS = 5.0  # how often a job that is not on a terminal says how far it is
_POINT_EVERY_SECONDS = 0.2
_POINTS = 50  # over which the rate is measured


class Count:
    """What is done of a total. What the first report brings is taken for work of an earlier time."""

    def __init__(self, what: str, total: float | None, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0.0
        self.fields: dict[str, str] = {}
        self._points: deque[tuple[float, float]] = deque(maxlen=_POINTS)

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        now = time.monotonic()
        if not self._points or now - self._points[-1][0] >= _POINT_EVERY_SECONDS:
            self._points.append((now, self.done))

    def show(self, **fields: str) -> None:
        self.fields = fields

    @property
    def finished(self) -> bool:
        return self.total is not None and self.done >= self.total

    def seconds_left(self) -> float | None:
        """By the rate of the last reports; None when it is not known."""
        if self.total is None or self.finished or len(self._points) < 2:
            return None
        (start, before), (end, after) = self._points[0], self._points[-1]
        return (self.total - self.done) * (end - start) / (after - before) if after > before else None

    def __str__(self) -> str:
        text = f"{self.done:,.0f}" if self.total is None else f"{self.done:,.0f}/{self.total:,.0f}"
        return f"{text} {self.unit}".rstrip()


class LineMeter(Count):
    """Says a line every five seconds, and one at the end."""

    def __init__(self, say: Callable[[str], None], what: str, total: float | None, unit: str) -> None:
        super().__init__(what, total, unit)
        self._say, self._last = say, time.monotonic()

    def advance(self, amount: float = 1) -> None:
        super().advance(amount)
        now = time.monotonic()
        if self.finished or now - self._last >= _LINE_EVERY_SECONDS:
            self._last = now
            fields = (f"{name.replace('_', ' ')} {value}" for name, value in self.fields.items())
            left = self.seconds_left()
            tail = [] if left is None else [f"left {duration(left)}"]
            self._say(" ".join([f"{self.what}: {self}", *fields, *tail]))


def duration(seconds: float) -> str:
    """Seconds as people say them: 42s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
