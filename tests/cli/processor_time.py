"""What a command costs by the processor's time, which other processes beside it hardly change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def seconds(arguments: Sequence[str], cwd: Path) -> float:
    """Seconds of the processor that `python ARGUMENTS` takes; it must end well."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def takes_less(arguments: Sequence[str], times: float, base: Sequence[str], cwd: Path) -> bool:
    """Whether a command costs less than so many times another one: by turns, the best of each, in up to 15 rounds."""
    own, others = [], []
    for _ in range(15):
        others.append(seconds(base, cwd))
        own.append(seconds(arguments, cwd))
        if min(own) < times * min(others):
            return True
    return False
