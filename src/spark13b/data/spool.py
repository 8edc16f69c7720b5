"""Pieces that wait on the disk until their rows are made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spark13b.data.overlong import Pieces


class Spool:
    """Pieces in a file; its first `size` bytes are those of an earlier run."""

    def __init__(self, path: Path, size: int = 0) -> None:
        self._path = path
        self._file: Any = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(size)
        self._file.seek(size)

    @property
    def size(self) -> int:
        """Bytes of the file, all handed to the system."""
        self._file.flush()
        return int(self._file.tell())

    def add(self, pieces: Pieces) -> None:
        """Append pieces."""
        if len(pieces):
            for values in (pieces.lengths, pieces.ids, pieces.mask):
                np.save(self._file, values)

    def read(self) -> Iterator[Pieces]:
        """All pieces, as they were added."""
        end = self.size
        with self._path.open("rb") as file:
            while file.tell() < end:
                lengths, ids, mask = (np.load(file) for _ in range(3))
                yield Pieces(ids, mask, lengths)

    def close(self) -> None:
        self._file.close()
