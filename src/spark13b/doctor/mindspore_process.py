"""The process that looks at MindSpore, started early, read late, ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from spark13b.doctor.probe import MARK

PROBE = (sys.executable, "-P", "-m", "spark13b.doctor.probe")


@dataclass(frozen=True)
class ProbeReport:
    """What the probe told of each step, and why it ended before its last one; empty: it did not."""

    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed_at: str = ""
    problem: str = ""


class Probe:
    """A probe that runs."""

    def __init__(self, process: subprocess.Popen[bytes], output: IO[bytes], errors: IO[bytes], until: float) -> None:
        self._process, self._output, self._errors, self._until = process, output, errors, until

    def report(self) -> ProbeReport:
        """Wait for its end, or the time-out, and read what it told."""
        problem = ""
        try:
            code = self._process.wait(max(0.0, self._until - time.monotonic()))
            if code != 0:
                problem = f"it crashed ({_ending(code)}){self._last_error()}"
        except subprocess.TimeoutExpired:
            problem = "it did not end in time"
        steps: dict[str, dict[str, Any]] = {}
        self._output.seek(0)
        for line in self._output.read().decode(errors="replace").splitlines():
            if line.startswith(MARK):
                with contextlib.suppress(ValueError, KeyError):  # a line cut by the crash
                    facts = json.loads(line.removeprefix(MARK))
                    steps[facts.pop("step")] = facts
        if "error" in steps:
            return ProbeReport(steps, steps["error"]["at"], steps["error"]["what"])
        missing = next((step for step in ("mindspore", "devices", "attention") if step not in steps), "")
        return ProbeReport(steps, missing, (problem or "it said nothing") if missing else "")

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return f": {lines[-1]}" if lines else ""


@contextmanager
def probing(command: Sequence[str], seconds: float) -> Iterator[Probe]:
    """A probe that has begun, in a folder of its own: MindSpore leaves files where it runs."""
    with (
        tempfile.TemporaryDirectory(prefix="spark13b-doctor-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"GLOG_v": "4", **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,  # it is ended with all that it may start
        )
        try:
            yield Probe(process, output, errors, time.monotonic() + seconds)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ending(code: int) -> str:
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
