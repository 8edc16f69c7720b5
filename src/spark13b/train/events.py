"""TensorBoard events, written by tensorboardX; what is flushed is in the file, for a run that may be killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FLUSH_SECONDS = 10.0


class Events:
    """One file of events, from step `first` on: TensorBoard drops what earlier files say of that step and later ones.

    tensorboardX's EventsWriter rather than its SummaryWriter, which flushes only what its thread has come round to.
    """

    def __init__(self, folder: Path, first: int) -> None:
        import mindspore  # noqa: F401  # before protobuf, which it must set up

        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.summary import scalar
        self._event, self._scalar = Event, scalar
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(wall_time=time.time(), step=first, session_log=start))
        self._flushed = 0.0

    def add(self, tag: str, value: float, step: int) -> None:
        """Add one number."""
        now = time.time()
        self._file.write_event(self._event(wall_time=now, step=step, summary=self._scalar(tag, value)))
        if now - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()
        self._flushed = time.time()

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()


@contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports torch where there is one: two seconds, and its threads, for nothing."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` an ImportError
    try:
        yield
    finally:
        del sys.modules["torch"]
