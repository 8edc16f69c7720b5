"""What is waited for ends with a signal, also with one that comes just before the wait begins."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_AGAIN = 0.1  # seconds
_KNOCK = signal.SIGURG  # nobody else's, and without harm


@contextlib.contextmanager
def signals_end_it() -> Iterator[None]:
    """Let a signal's handler run soon, whatever the main thread waits for.

    Python runs handlers between two steps of its own. A signal that comes after the last step before a system call
    does not end that call, and its handler would run only when the next key is pressed: so knock until it has run.
    The handler has to raise. For the main thread.
    """
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    ended = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def knock() -> None:
        while numbers := os.read(ours, 64):
            while set(numbers) != {_KNOCK} and not ended.wait(_AGAIN):
                signal.pthread_kill(main, _KNOCK)

    handler = signal.signal(_KNOCK, lambda number, frame: None)
    wakeup = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    watcher = threading.Thread(target=knock, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(wakeup)
        os.close(theirs)
        watcher.join()
        os.close(ours)
        signal.signal(_KNOCK, handler)
