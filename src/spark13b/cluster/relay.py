"""A worker's progress, shown by the launcher: `RecordedProgress` writes lines into a file, `Relay` plays them back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spark13b.progress import Meter, Progress

# a run of weeks must not fill the disk with the movements of its bar
_WRITE_EVERY_SECONDS = 0.5
_FILE_BYTES = 2**20


class RecordedProgress:
    """A Progress that appends what happens to a file, and calls `show_life` as often.

    The file is `path` with a number; the next one is begun when it is full. `path` None: only `show_life` is called.
    """

    def __init__(self, path: Path | None, show_life: Callable[[], None]) -> None:
        self._path, self._show_life = path, show_life
        self._number = 0
        self._meters = 0

    def note(self, text: str) -> None:
        self.write({"event": "note", "text": text})

    @contextmanager
    def track(self, what: str, total: float | None = None, unit: str = "") -> Iterator[Meter]:
        self._meters += 1
        meter = _RecordedMeter(self, self._meters)
        self.write({"event": "track", "meter": meter.number, "what": what, "total": total, "unit": unit})
        try:
            yield meter
        finally:
            meter.flush()
            self.write({"event": "end", "meter": meter.number})

    def write(self, event: dict[str, Any]) -> None:
        """Append one event."""
        self._show_life()
        if self._path is not None:
            file = _numbered(self._path, self._number)
            _append(file, event)
            if file.stat().st_size > _FILE_BYTES:
                _append(file, {"event": "next"})
                self._number += 1


class _RecordedMeter:
    """Gathers what happens between two lines into one."""

    def __init__(self, progress: RecordedProgress, number: int) -> None:
        self.number = number
        self._progress = progress
        self._amount = 0.0
        self._fields: dict[str, str] | None = None
        self._written = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        self._amount += amount
        self._flush_when_due()

    def show(self, **fields: str) -> None:
        self._fields = fields
        self._flush_when_due()

    def flush(self) -> None:
        """Write what has happened since the last line."""
        if self._amount or self._fields is not None:
            event = {"event": "advance", "meter": self.number, "amount": self._amount, "fields": self._fields}
            self._amount, self._fields = 0.0, None
            self._progress.write(event)
        self._written = time.monotonic()

    def _flush_when_due(self) -> None:
        if time.monotonic() - self._written >= _WRITE_EVERY_SECONDS:
            self.flush()


class Relay:
    """Follows the file of a `RecordedProgress` and repeats its events on another Progress."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self._progress = path, progress
        self._number = self._offset = 0
        self._meters: dict[int, tuple[ExitStack, Meter]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the bars that a dead worker left open, the innermost first."""
        for number in sorted(self._meters, reverse=True):
            self._end(number)

    def follow(self) -> None:
        """Repeat the events written since the last call. A line not yet complete waits for the next one."""
        try:
            with _numbered(self._path, self._number).open("rb") as file:
                file.seek(self._offset)
                written = file.read()
        except FileNotFoundError:
            return
        complete = written[: written.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            self._repeat(json.loads(line))

    def _repeat(self, event: dict[str, Any]) -> None:
        if event["event"] == "note":
            self._progress.note(event["text"])
        elif event["event"] == "track":
            stack = ExitStack()
            meter = stack.enter_context(self._progress.track(event["what"], event["total"], event["unit"]))
            self._meters[event["meter"]] = stack, meter
        elif event["event"] == "end":
            self._end(event["meter"])
        elif event["event"] == "next":
            _numbered(self._path, self._number).unlink()
            self._number, self._offset = self._number + 1, 0
        else:
            _, meter = self._meters[event["meter"]]
            if event["fields"] is not None:
                meter.show(**event["fields"])
            if event["amount"]:
                meter.advance(event["amount"])

    def _end(self, number: int) -> None:
        stack, _ = self._meters.pop(number)
        stack.close()


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _append(path: Path, event: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event, ensure_ascii=False) + "\n")
