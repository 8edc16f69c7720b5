"""The input files of a job, read one after the other: progress is reported and each file's hash taken on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from spark13b.data.manifest import InputEntry
from spark13b.data.records import Record, container_of, read_records
from spark13b.errors import InputError
from spark13b.progress import Meter

_TELL_EVERY = 1 << 20  # bytes


class Sources:
    """Input files in the order given; `entries` lists those that were read to their end."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises InputError when there is no file, or one of them cannot be read."""
        if not paths:
            raise InputError("there is no input", fix="name at least one file with --input")
        for path in paths:
            container_of(path)
        self._paths = list(paths)
        self.size = sum(path.stat().st_size for path in paths)  # bytes
        self.entries: list[InputEntry] = []

    def records(self, meter: Meter) -> Iterator[Record]:
        """Yield all records; `meter` advances by bytes. Raises InputError, with file and line, as `read_records`."""
        for path in self._paths:
            watch = _Watch(meter)
            yield from read_records(path, watch.see)
            watch.tell()
            self.entries.append(InputEntry(path=str(path.resolve()), size=watch.size, sha256=watch.hash.hexdigest()))


class _Watch:
    """Hashes and counts bytes; tells a meter now and then, because a line of text is too little to draw a bar for."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._told = 0
        self.size = 0
        self.hash = hashlib.sha256()

    def see(self, data: bytes) -> None:
        self.hash.update(data)
        self.size += len(data)
        if self.size - self._told >= _TELL_EVERY:
            self.tell()

    def tell(self) -> None:
        self._meter.advance(self.size - self._told)
        self._told = self.size
