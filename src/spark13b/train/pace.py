"""How fast a run is."""

from __future__ import annotations

from collections import deque

_RECENT_STEPS = 20


class Pace:
    """Tokens a second, now and over all steps. The first step does not count: MindSpore compiles in it."""

    def __init__(self, tokens_a_step: int) -> None:
        self._tokens = tokens_a_step
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._steps, self._seconds = -1, 0.0

    def add(self, seconds: float) -> None:
        """Take note of a step, reading its rows included."""
        self._steps += 1
        if self._steps:
            self._recent.append(seconds)
            self._seconds += seconds

    @property
    def now(self) -> float | None:
        """Over the last 20 steps; None before the second one."""
        seconds = sum(self._recent)
        return len(self._recent) * self._tokens / seconds if seconds else None

    @property
    def overall(self) -> float:
        """Over all steps but the first; 0 before the second one."""
        return self._steps * self._tokens / self._seconds if self._seconds else 0.0
