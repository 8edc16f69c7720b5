"""Read on in a thread while the caller writes: reading, checking and converting then have a core of their own.

What takes the time below Python (reading, checksums, conversions, writing) lets other threads run meanwhile.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from spark13b.ckpt.tensors import Checkpoint, TensorInfo

_PIECES = 8  # read before they are asked for


def pieces_ahead(source: Checkpoint) -> Iterator[tuple[TensorInfo, Iterator[memoryview]]]:
    """Every tensor of `source`, in order, as its info and its bytes piece by piece, a few pieces read in advance.

    The pieces of one tensor must be used up before the next tensor is asked for. What `source` raises is raised here.
    """
    waiting: queue.Queue[memoryview | BaseException | None] = queue.Queue(_PIECES)
    abandoned = threading.Event()
    reader = threading.Thread(target=_read, args=(source, waiting, abandoned), name="read ahead", daemon=True)
    reader.start()
    try:
        for info in source.infos.values():
            yield info, _until_the_end(waiting)
    finally:
        abandoned.set()
        while reader.is_alive():  # it may be waiting for room in the queue
            _empty(waiting)
            reader.join(0.01)


def _empty(waiting: queue.Queue[memoryview | BaseException | None]) -> None:
    """Empty the queue."""
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        pass


def _read(
    source: Checkpoint, waiting: queue.Queue[memoryview | BaseException | None], abandoned: threading.Event
) -> None:
    """In the thread: pieces, None after each tensor, or the error that ends it all."""
    try:
        for name in source:
            for piece in source.pieces(name):
                waiting.put(piece)
                if abandoned.is_set():
                    return
            waiting.put(None)
    except BaseException as error:
        waiting.put(error)


def _until_the_end(waiting: queue.Queue[memoryview | BaseException | None]) -> Iterator[memoryview]:
    while (item := waiting.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
