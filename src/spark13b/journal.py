"""Records on their way to a file, by number: whatever ends the process, what was added is there at the next start.

They are appended, a line each, behind a line that tells what they belong to.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from spark13b.errors import InputError
from spark13b.files import disk_error


class Journal:
    """An open journal, which no other process can open meanwhile.

    with Journal(path, identity) as journal:
        for number in (one for one in range(count) if one not in journal):
            journal.add(number, record)
        ...  # use journal[number]
        journal.remove()
    """

    def __init__(self, path: Path, identity: str, *, force: bool = False) -> None:
        """Open it, with what an earlier process has left.

        Raises InputError when that belongs to something else (with `force` it is forgotten), or is in use.
        """
        self.path = path
        self._identity, self._force = identity, force
        self._removed = False
        self._places: dict[int, int] = {}  # number of a record -> where its line begins
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError:
            self._file.close()
            raise InputError(
                "another spark13b is writing these answers", where=path, fix="wait for it, or end it"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __getitem__(self, number: int) -> Any:
        self._file.seek(self._places[number])
        return json.loads(self._file.readline())["record"]

    def add(self, number: int, record: Any) -> None:
        """Keep a record; it is on its way to the disk when this returns. Raises JobError when the disk is full."""
        self._places[number] = self._append({"index": number, "record": record})

    def remove(self) -> None:
        """Forget everything: it has reached its file."""
        self.path.unlink()
        self._removed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._places and not self._removed:
            self.path.unlink(missing_ok=True)
        try:
            self._file.close()
        except OSError:  # it writes again what did not fit on the disk: that has been told
            if error is None:
                raise

    def _load(self) -> None:
        self._file.seek(0)
        head = self._file.readline()
        if not head.endswith(b"\n") or _identity_of(head) != self._identity:
            if head.endswith(b"\n") and not self._force:
                raise InputError(
                    "here are answers to other prompts, or with other options, of a command that was stopped",
                    where=self.path,
                    fix="run that command again to its end, choose another --output, or add --force to start anew",
                )
            self._file.truncate(0)
            self._append({"spark13b": "answers", "version": 1, "identity": self._identity})
            return
        end = self._file.tell()
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # cut off by the end of the process
            try:
                self._places[int(json.loads(line)["index"])] = end
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    "this line is no answer", where=self.path, line=len(self._places) + 2, fix="delete the file"
                ) from None
            end += len(line)
        self._file.truncate(end)

    def _append(self, value: dict[str, Any]) -> int:
        """Write a line; where it begins."""
        place = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self.path) from error
        return place


def _identity_of(head: bytes) -> str | None:
    try:
        return str(json.loads(head)["identity"])
    except (ValueError, KeyError, TypeError):
        return None
