"""The two errors that spark13b raises on purpose; `cli.main` turns them into a message and an exit code.

An error says what is wrong, where, and how to mend it, in that order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class SparkError(Exception):
    """Base of the errors a user is meant to read.

    `what` is one sentence; `where` a file (with `line`) or a key; `fix` what to do about it.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | Path | None = None, line: int | None = None, fix: str | None = None
    ) -> None:
        self.what = what
        self.where = str(where) if where is not None else None
        self.line = line
        self.fix = fix
        super().__init__(self.message())

    def message(self) -> str:
        """The whole message: `what`, then `  at: where:line`, then `  fix: ...`, each on its own line."""
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  at: {self.where}" + (f":{self.line}" if self.line is not None else ""))
        if self.fix is not None:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class InputError(SparkError):
    """What the user gave is wrong (a file, an option, a preset): exit code 2."""

    exit_code = 2


class JobError(SparkError):
    """The input was fine but the job could not be finished: exit code 1."""

    exit_code = 1


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None when nothing is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
