"""Tell a Progress about bytes: how many of how many, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from spark13b.progress import Progress

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_FINE = 100  # at least so many steps to the end


@contextmanager
def byte_meter(progress: Progress, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A function to call with the bytes just dealt with; the bar counts them in a unit that suits `total`."""
    unit, size = next(((unit, size) for unit, size in _UNITS[1:] if (total or 1e9) >= _FINE * size), ("kB", 1e3))
    start, done = time.monotonic(), 0
    with progress.track(what, None if total is None else total / size, unit) as meter:

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            meter.show(rate=f"{amount(done / max(time.monotonic() - start, 1e-3))}/s")
            meter.advance(nbytes / size)

        yield advance


def counted(pieces: Iterable[memoryview], advance: Callable[[int], None]) -> Iterator[memoryview]:
    """Pass `pieces` on, and count each once it has been dealt with."""
    for piece in pieces:
        yield piece
        advance(len(piece))


def amount(nbytes: float) -> str:
    """Bytes as people say them: 6.5 GB."""
    for unit, size in _UNITS:
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} bytes"
