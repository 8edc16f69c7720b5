"""Finished answers on their way to a file: none is asked for twice, whatever ends the process.

They are appended to FILE.partial as they come, a line each, behind a line that tells what they answer. When all are
there FILE is written whole, in the order of the prompts, and FILE.partial goes.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from spark13b.errors import InputError
from spark13b.files import disk_error, replacing


class Journal:
    """The answers to `count` prompts for `target`; `identity` tells the prompts, the options and the model.

    with Journal(target, identity, count) as journal:
        for index in journal.missing():
            journal.add(index, record)
        journal.finish()
    """

    def __init__(self, target: Path, identity: str, count: int, *, force: bool = False) -> None:
        """Open it, with what an earlier process has left. Raises InputError when that answers other prompts."""
        self.path = target.with_name(target.name + ".partial")
        self._target, self._identity, self._count, self._force = target, identity, count, force
        self._places: dict[int, int] = {}  # number of a prompt -> where its line begins
        self._file: IO[bytes] = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError:
            self._file.close()
            raise InputError(
                "another spark13b is writing these answers", where=self.path, fix="wait for it, or end it"
            ) from None
        except BaseException:
            self._file.close()
            raise

    @property
    def done(self) -> int:
        """How many answers there are."""
        return len(self._places)

    def missing(self) -> list[int]:
        """The prompts without an answer, in order."""
        return [index for index in range(self._count) if index not in self._places]

    def add(self, index: int, record: dict[str, Any]) -> None:
        """Keep the answer to prompt `index`. Raises JobError when the disk is full."""
        self._append(index, {"index": index, "record": record})

    def finish(self) -> None:
        """Write the target. Raises JobError when the disk is full; the answers stay in the journal then."""
        assert not self.missing()
        with replacing(self._target, force=self._force) as draft, draft.open("wb") as lines:
            for index in range(self._count):
                self._file.seek(self._places[index])
                record = json.loads(self._file.readline())["record"]
                lines.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._places and self.path.exists():
            self.path.unlink()
        self._file.close()

    def _load(self) -> None:
        self._file.seek(0)
        head = self._file.readline()
        if not head.endswith(b"\n") or self._identity_of(head) != self._identity:
            if head.endswith(b"\n") and not self._force:
                raise InputError(
                    "here are answers to other prompts, or with other options, of a command that was stopped",
                    where=self.path,
                    fix="run that command again to its end, choose another --output, or add --force to start anew",
                )
            self._file.truncate(0)
            self._append(None, {"spark13b": "answers", "version": 1, "identity": self._identity})
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

    @staticmethod
    def _identity_of(head: bytes) -> str | None:
        try:
            return str(json.loads(head)["identity"])
        except (ValueError, KeyError, TypeError):
            return None

    def _append(self, index: int | None, value: dict[str, Any]) -> None:
        try:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self.path) from error
        if index is not None:
            self._places[index] = place
