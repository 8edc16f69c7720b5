"""What the writers of all formats share, and the file they write to: its bytes set out for the disk at once."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from spark13b.ckpt.tensors import TensorInfo

_STRIDE = 32 << 20  # bytes


class OutputFile(io.FileIO):
    """A new file, opened to write and read back.

    The kernel would keep up to a fifth of the memory unwritten and leave the wait to the final fsync. Advising it every
    32 MiB that these bytes are not needed again makes it begin to write them (and does nothing else: they are dirty).
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+b")
        self._on_the_way = 0

    def write(self, data: Any) -> int:
        """All of `data`, where FileIO may write less."""
        view = memoryview(data)
        while view:
            view = view[super().write(view) :]
        end = self.tell()
        if end - self._on_the_way >= _STRIDE:
            os.posix_fadvise(self.fileno(), self._on_the_way, end - self._on_the_way, os.POSIX_FADV_DONTNEED)
            self._on_the_way = end
        return len(data)


class TensorWriter(ABC):
    """Writes tensors in the order they come; leaving it as a context manager closes the file, finished or not."""

    def __init__(self, path: Path) -> None:
        self._file = OutputFile(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    @abstractmethod
    def add(self, info: TensorInfo, pieces: Iterable[memoryview]) -> None:
        """Append one tensor; `pieces` are its bytes."""

    @abstractmethod
    def finish(self) -> None:
        """Write what stands around the tensors; nothing may follow."""
