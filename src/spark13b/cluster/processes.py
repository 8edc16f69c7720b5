"""Processes as Linux has them: adopted, marked, tied to their launcher's life, ended with all they started.

msrun starts its workers and leaves. The launcher has made itself the one that adopts orphans, so it is their parent
then and learns how each of them ends. All of them carry the launch's folder in their environment, their children too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import psutil

from spark13b.errors import InputError, JobError

REPORTS = "SPARK13B_REPORTS"  # the folder of one launch's reports: the mark of its processes
LAUNCHER = "SPARK13B_LAUNCHER"  # the launcher's process id
SHOWN = "SPARK13B_SHOWN"  # the rank of the worker whose progress is shown

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_PATIENCE_SECONDS = 60.0  # for msrun to leave after it has started its workers
_TERM_SECONDS, _KILL_SECONDS = 3.0, 5.0


class Running(Protocol):
    """A process as `subprocess.Popen` shows it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""


@dataclass(frozen=True)
class Member:
    """A worker, or the scheduler (`rank` None)."""

    rank: int | None
    process: Running
    log: Path

    @property
    def name(self) -> str:
        return "the scheduler" if self.rank is None else f"worker {self.rank}"


class Adopted:
    """A process that this one did not start, but inherits."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # not inherited yet, or gone unseen
                self._code = None if psutil.pid_exists(self.pid) else 1
            else:
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


@contextmanager
def adopting() -> Iterator[None]:
    """Become the parent of the orphans among one's descendants. Raises InputError where the system cannot do that."""
    if sys.platform != "linux":
        raise InputError("several processes need Linux", fix="run it as one process")
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def die_with_parent() -> None:
    """Let the kernel kill this process as soon as its parent is gone, however the parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with(launcher: int) -> bool:
    """Wait until `launcher` is the parent, then `die_with_parent`; False when the launcher is gone already."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while os.getppid() != launcher:
        if not psutil.pid_exists(launcher):
            return False
        if time.monotonic() > deadline:
            raise JobError("this worker is no child of its launcher", fix="start it with --nproc or --rank-table")
        time.sleep(0.02)
    die_with_parent()
    return os.getppid() == launcher  # it may have gone in between


def marked(reports: Path) -> list[psutil.Process]:
    """Every process of the launch whose folder is `reports`, the children of its workers too."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(REPORTS) == str(reports):
                found.append(process)
    return found


def send(members: Iterable[Member], number: int) -> None:
    """Send a signal to those that still run."""
    for member in members:
        if member.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.process.pid, number)


def end_all(members: Iterable[Member], reports: Path) -> None:
    """End the members and all that the launch started: SIGTERM to the workers, SIGKILL to what is left after 3 s.

    The scheduler goes last: a worker that leaves tells it so. Raises JobError when a process survives even that.
    """
    members = list(members)
    workers = [member for member in members if member.rank is not None]
    send(workers, signal.SIGTERM)
    _wait(lambda: all(member.process.poll() is not None for member in workers), _TERM_SECONDS)
    seen: dict[int, Adopted] = {}

    def none_left() -> bool:
        left = marked(reports)
        for process in left:
            seen.setdefault(process.pid, Adopted(process.pid))
            with contextlib.suppress(psutil.Error):
                process.kill()
        known = [*(member.process for member in members), *seen.values()]
        # polling takes what is left of a process out of the process table
        return not [process for process in known if process.poll() is None] and not left

    if not _wait(none_left, _KILL_SECONDS):
        left = ", ".join(str(process.pid) for process in marked(reports))
        raise JobError(f"these processes cannot be ended: {left}", fix="look at them with 'ps'; a device may be stuck")


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@cache
def _libc() -> ctypes.CDLL:
    """Loaded once: a process just forked had better not load libraries."""
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
