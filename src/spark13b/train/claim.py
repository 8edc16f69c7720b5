"""A run's folder belongs to one process at a time: a second one would delete what the first is writing."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from spark13b.errors import InputError

LOCK = ".lock"  # in the run's folder


class Claim:
    """Keeps a folder to this process from `take` on until the end of the `with`, or of the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Take the folder, which is there, if it is not taken already.

        Raises InputError when another process has it. Some network disks have no locks: there nothing is refused.
        """
        if self._file is not None:
            return
        self._file = (self._folder / LOCK).open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(
                "another spark13b trains in this folder",
                where=self._folder,
                fix="wait for it, or choose another --output",
            ) from None
        except OSError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
