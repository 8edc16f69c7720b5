"""MindSpore's error reports are pages long; people want the line that says what is wrong."""

from __future__ import annotations


def reason_of(error: Exception) -> str:
    """That line: the first that is marked `[ERROR]`, or else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    marked = [line.removeprefix("[ERROR]").strip() for line in lines if line.startswith("[ERROR]")]
    return (marked or lines or [type(error).__name__])[0]
