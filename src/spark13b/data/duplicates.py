"""Which texts were seen before, by 16-byte hashes in sorted arrays: 16 bytes a text, and the same on disk to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spark13b.data.encoding import DIGEST_BYTES

Digests = npt.NDArray[np.bytes_]
_KIND = f"S{DIGEST_BYTES}"


class Seen:
    """The texts that have come so far; `path` keeps them, its first `size` bytes being those of an earlier run."""

    def __init__(self, path: Path, size: int = 0) -> None:
        self._file: Any = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(size)
        self._levels: list[Digests] = []  # sorted, each at least twice as long as the next
        while data := self._file.read(DIGEST_BYTES << 16):
            self._keep(np.sort(_digests(data)))

    @property
    def size(self) -> int:
        """Bytes of the file, all on the disk."""
        self._file.flush()
        return int(self._file.tell())

    def first_time(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Which of these texts (k,) come for the first time; they have been seen from now on."""
        new = np.zeros(len(digests), np.bool_)
        unique, where = np.unique(digests, return_index=True)
        known = np.zeros(len(unique), np.bool_)
        for level in self._levels:
            at = np.searchsorted(level, unique)
            found = at < len(level)
            known[found] |= level[at[found]] == unique[found]
        new[where[~known]] = True
        fresh = unique[~known]
        if len(fresh):
            self._keep(fresh)
            self._file.write(b"".join(bytes(one).ljust(DIGEST_BYTES, b"\0") for one in digests[new]))
        return new

    def close(self) -> None:
        self._file.close()

    def _keep(self, fresh: Digests) -> None:
        while self._levels and len(self._levels[-1]) < 2 * len(fresh):
            fresh = np.sort(np.concatenate((self._levels.pop(), fresh)))
        self._levels.append(fresh)


def _digests(data: bytes) -> Digests:
    return np.frombuffer(data, _KIND)
