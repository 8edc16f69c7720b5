"""Commands run in the test's own process, which starts no other: what was said and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Said]
