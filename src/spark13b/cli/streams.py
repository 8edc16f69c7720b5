"""The standard input and output of a command in the hands of a worker that it started.

What the worker writes goes over a socket to the command, which writes it where its own output goes; what the command is
given goes the other way. (A worker that opened the command's files would have a place of its own in them.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = "SPARK13B_STREAMS"
_PIECE = 1 << 16


@contextmanager
def lent() -> Iterator[None]:
    """In the command: whoever `borrowed` among the processes that are started inside has this process's streams."""
    folder = Path(tempfile.mkdtemp(prefix="spark13b-streams-"))
    listeners = [_listener(folder / "out")]
    threads = [threading.Thread(target=_write, args=(listeners[0],), daemon=True)]
    if not sys.stdin.isatty():
        listeners.append(_listener(folder / "in"))
        threads.append(threading.Thread(target=_read, args=(listeners[1],), daemon=True))
    os.environ[_FOLDER] = str(folder)
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        del os.environ[_FOLDER]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as nobody:
            nobody.connect(str(folder / "out"))  # if nobody borrowed, let the writer see an end
        threads[0].join(timeout=10)
        for listener in listeners:
            listener.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def borrowed() -> Iterator[None]:
    """In a worker: `sys.stdin` and `sys.stdout` are those of the command."""
    folder, before = Path(os.environ[_FOLDER]), (sys.stdin, sys.stdout)
    with contextlib.ExitStack() as exits:
        out = exits.enter_context(_connected(folder / "out"))
        shown = exits.enter_context(out.makefile("w", encoding="utf-8"))
        if (folder / "in").exists():
            come = exits.enter_context(_connected(folder / "in"))
            given = exits.enter_context(come.makefile("r", encoding="utf-8", errors="surrogateescape"))
        else:
            given = exits.enter_context(open(os.devnull, encoding="utf-8"))
        sys.stdin, sys.stdout = given, shown
        try:
            yield
        finally:
            sys.stdin, sys.stdout = before
            with contextlib.suppress(OSError):
                shown.flush()


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def _write(listener: socket.socket) -> None:
    """Write what comes to standard output."""
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            while piece := connection.recv(_PIECE):
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()


def _read(listener: socket.socket) -> None:
    """Send what is read from standard input, when it is asked for."""
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            while piece := os.read(sys.stdin.fileno(), _PIECE):
                connection.sendall(piece)
