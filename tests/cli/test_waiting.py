"""Signals that come just before a wait."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from spark13b.cli.waiting import signals_end_it


class _Told(Exception):
    pass


def test_a_signal_that_did_not_end_the_wait_is_seen_soon() -> None:
    def tell(number: int, frame: object) -> None:
        raise _Told

    ours, theirs = os.pipe()
    before = signal.signal(signal.SIGTERM, tell), signal.getsignal(signal.SIGURG)
    threads = threading.active_count()
    # another thread takes it: the main one sleeps on, as it does where the signal came before it slept
    sender = threading.Timer(0.3, signal.raise_signal, (signal.SIGTERM,))
    late = threading.Timer(20, os.write, (theirs, b"x"))
    late.start()
    try:
        with pytest.raises(_Told), signals_end_it():
            sender.start()
            os.read(ours, 1)
        assert late.is_alive()
        assert signal.set_wakeup_fd(-1) == -1 and signal.getsignal(signal.SIGURG) == before[1]
    finally:
        sender.join()
        signal.signal(signal.SIGTERM, before[0])
        late.cancel()
        late.join()
        os.close(ours)
        os.close(theirs)
    assert threading.active_count() == threads


def test_a_wait_without_signals_is_left_alone() -> None:
    for _ in range(100):
        with signals_end_it():
            pass
    assert signal.set_wakeup_fd(-1) == -1
