"""A real `spark13b serve` process over a small model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Server:
    """A server that listens, and what it says on stderr."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def memory(self) -> float:
        """Resident MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


@contextmanager
def serving(run: Path, log: Path, *options: object, **environment: str) -> Iterator[Server]:
    """A server of the model of `run` on a free port; it is ended when the caller leaves."""
    command = [sys.executable, "-m", "spark13b", "serve", "--load", str(run), "--port", "0", *map(str, options)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, text=True, env=os.environ | environment)
    try:
        until = time.monotonic() + 200
        while not (found := re.search(r"serving \S+ at (http://\S+) ", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield Server(process, found[1], log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
