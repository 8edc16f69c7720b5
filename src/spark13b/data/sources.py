"""The input files of a job, read one after the other: progress is reported and each file's hash taken on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from spark13b.data.blocks import Block, read_blocks
from spark13b.data.containers import container_of, expanded
from spark13b.data.manifest import InputEntry
from spark13b.data.records import Record, no_records, read_records
from spark13b.errors import InputError
from spark13b.progress import Meter

_TELL_EVERY = 1 << 20  # bytes


class Sources:
    """Input files in the order given, folders and patterns spread out; `entries` lists those read to their end."""

    def __init__(self, inputs: Sequence[Path]) -> None:
        """Raises InputError when there is no file, or one of them cannot be read."""
        if not inputs:
            raise InputError("there is no input", fix="name at least one file with --input")
        self.paths = expanded(inputs)
        for path in self.paths:
            container_of(path)
        self.size = sum(path.stat().st_size for path in self.paths)  # bytes
        self.entries: list[InputEntry] = []
        self.ends: list[int] = []  # of each entry: the number of blocks up to its end

    def repetition(self) -> str | None:
        """What to say of files that are read more than once, by the same name or by several; None: there are none."""
        names: dict[tuple[int, int], list[str]] = {}
        for path in self.paths:
            status = path.stat()  # of what a symbolic link leads to
            names.setdefault((status.st_dev, status.st_ino), []).append(str(path))
        repeated = [found for found in names.values() if len(found) > 1]
        if not repeated:
            return None
        first = repeated[0]
        also = ", ".join(dict.fromkeys(name for name in first if name != first[0]))
        more = f" (and {len(repeated) - 1} other files more than once)" if repeated[1:] else ""
        return f"{first[0]} is read {len(first)} times{', also as ' + also if also else ''}{more}"

    def records(self, meter: Meter) -> Iterator[Record]:
        """Yield all records; `meter` advances by bytes. Raises InputError, with file and line, as `read_records`."""
        for path in self.paths:
            watch = _Watch(meter)
            yield from read_records(path, watch.see)
            watch.tell()
            self.entries.append(watch.entry(path))

    def blocks(self, meter: Meter, start: int = 0) -> Iterator[Block]:
        """Yield the blocks from number `start` on; `meter` advances by bytes, those before `start` too.

        `entries` and `ends` may hold the files that an earlier run has read: these are not read again.
        """
        number = self.ends[-1] if self.ends else 0
        meter.advance(sum(entry.size for entry in self.entries))
        for path in self.paths[len(self.entries) :]:
            watch = _Watch(meter)
            first = number
            for block in read_blocks(path, watch.see):
                if number >= start:
                    yield block
                number += 1
            if number == first:
                raise no_records(path)
            watch.tell()
            self.entries.append(watch.entry(path))
            self.ends.append(number)


class _Watch:
    """Hashes and counts bytes; tells a meter now and then, because a line of text is too little to draw a bar for."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._told = 0
        self.size = 0
        self.hash = hashlib.sha256()

    def see(self, data: bytes | memoryview) -> None:
        self.hash.update(data)
        self.size += len(data)
        if self.size - self._told >= _TELL_EVERY:
            self.tell()

    def tell(self) -> None:
        self._meter.advance(self.size - self._told)
        self._told = self.size

    def entry(self, path: Path) -> InputEntry:
        return InputEntry(path=str(path.resolve()), size=self.size, sha256=self.hash.hexdigest())
