"""What every checkpoint is, whatever its format: a read-only mapping from names to arrays that are read when asked for.

`TensorInfo` tells a tensor's name, shape and dtype without reading it. `Derived` is a checkpoint made from others by
renaming, casting, cutting or joining, one tensor at a time: conversions are `Derived` checkpoints that are written.
"""

from __future__ import annotations

import mmap
import os
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

import numpy as np

from spark13b.ckpt.dtypes import PIECE, Array, as_bytes, pieces_of
from spark13b.errors import InputError, nearest

_STRIDE = 32 << 20  # bytes
SourceFormat = Literal["ckpt", "safetensors", "torch", "slices"]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the file's index tells it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def size(self) -> int:
        """Numbers."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return self.size * self.dtype.itemsize

    def renamed(self, name: str) -> TensorInfo:
        """The same tensor under another name."""
        return replace(self, name=name)


class Checkpoint(Mapping[str, Array]):
    """A read-only mapping name -> array. Each look-up reads the tensor anew and the caller owns the result.

    `format` is ckpt, safetensors, torch or slices; `infos` is the index. Use it as a context manager, or `close` it.
    """

    def __init__(
        self,
        path: Path,
        format: SourceFormat,
        infos: Mapping[str, TensorInfo],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.format = format
        self.infos: Mapping[str, TensorInfo] = MappingProxyType(dict(infos))
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))

    @abstractmethod
    def read(self, name: str) -> Array:
        """The array of a name that is in `infos`."""

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The bytes of that array in order, piece by piece. Damage may be found only after the last piece."""
        return pieces_of(self.read(name))

    def mapped(self, name: str) -> Array | None:
        """That array as the file's own pages in memory, read when they are touched and shared with other processes.

        It is read-only and stays when the checkpoint is closed; checksums are not compared. None: it cannot be.
        """
        return None

    def close(self) -> None:
        """Let go of the files. Reading afterwards is an error."""

    def has_checksum(self, name: str) -> bool:
        """Whether the file can tell a flipped bit in this tensor; `read` checks it."""
        return False

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.infos.values())

    def formats(self) -> dict[str, tuple[str, int]]:
        """Name -> the number format that the file has, and the bytes there."""
        return {name: (info.dtype.name, info.nbytes) for name, info in self.infos.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: info.shape for name, info in self.infos.items()}

    def dtypes(self) -> dict[str, np.dtype[np.generic]]:
        """Name -> dtype."""
        return {name: info.dtype for name, info in self.infos.items()}

    def __getitem__(self, name: str) -> Array:
        if name not in self.infos:
            near = nearest(name, self.infos)
            raise KeyError(f"{name!r} is not in {self.path}" + (f"; the nearest name is {near!r}" if near else ""))
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.infos  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path} ({self.format}, {len(self)} tensors)>"


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes are in its file, in order, and what is known about them."""

    info: TensorInfo
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Part:
    """One run of bytes. `crc` is the CRC-32 of the run, continued from `seed`; None when the file has none."""

    offset: int
    nbytes: int
    crc: int | None = None
    seed: int = 0


class FileCheckpoint(Checkpoint):
    """A checkpoint in one file whose index says where each tensor lies."""

    def __init__(
        self, path: Path, format: SourceFormat, stored: Mapping[str, Stored], metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(path, format, {name: item.info for name, item in stored.items()}, metadata)
        self._stored = dict(stored)
        self._file: int | None = os.open(path, os.O_RDONLY)
        self._memory: mmap.mmap | None = None
        self._forgets = os.fstat(self._file).st_size > _memory() // 8

    def read(self, name: str) -> Array:
        item = self._stored[name]
        array = np.empty(item.info.shape, item.info.dtype)
        self._fill(name, item.parts, as_bytes(array))
        return array

    def pieces(self, name: str) -> Iterator[memoryview]:
        for part in self._stored[name].parts:
            sizes = (min(PIECE, part.nbytes - start) for start in range(0, part.nbytes, PIECE))
            places = (np.empty(size, np.uint8).data for size in sizes)
            done = forgotten = 0
            for piece in self._read_part(name, part, places):
                yield piece
                done += len(piece)
                if self._forgets and (done - forgotten >= _STRIDE or done == part.nbytes):
                    self._forget(part.offset + forgotten, done - forgotten)
                    forgotten = done

    def mapped(self, name: str) -> Array | None:
        info, parts = self._stored[name].info, self._stored[name].parts
        if self._file is None or len(parts) != 1 or parts[0].offset % info.dtype.itemsize or not info.nbytes:
            return None
        if self._memory is None:
            self._memory = mmap.mmap(self._file, 0, prot=mmap.PROT_READ)
        return np.frombuffer(self._memory, info.dtype, info.size, parts[0].offset).reshape(info.shape)

    def has_checksum(self, name: str) -> bool:
        return all(part.crc is not None or not part.nbytes for part in self._stored[name].parts)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = self._memory = None  # arrays that show the mapped memory keep it

    def _forget(self, offset: int, nbytes: int) -> None:
        """Let the page cache drop what has gone by, where the file is large beside the memory.

        The pages are used again for what is written: copying 7 GB in 24 GB of memory took 8 s so, 16 s without.
        """
        if self._file is not None:
            os.posix_fadvise(self._file, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def _fill(self, name: str, parts: Sequence[Part], buffer: memoryview) -> None:
        """Read `parts` one after the other into `buffer`, which they fill."""
        begin = 0
        for part in parts:
            places = (
                buffer[begin + start :][: min(PIECE, part.nbytes - start)] for start in range(0, part.nbytes, PIECE)
            )
            for _ in self._read_part(name, part, places):
                pass
            begin += part.nbytes

    def _read_part(self, name: str, part: Part, places: Iterable[memoryview]) -> Iterator[memoryview]:
        """Read a part into `places`, handing on each; the checksum is compared after the last."""
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        at, crc = part.offset, part.seed
        for place in places:
            done = 0
            while done < len(place):
                got = os.preadv(self._file, [place[done:]], at + done)
                if not got:
                    raise truncated(self.path, name, at + done)
                done += got
            at += done
            if part.crc is not None:
                crc = zlib.crc32(place, crc)
            yield place
        if part.crc is not None and crc != part.crc:
            raise damaged(self.path, name, part)

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()


@dataclass(frozen=True)
class Recipe:
    """How one tensor of a `Derived` checkpoint comes about: whole, and where that spares memory also piece by piece."""

    info: TensorInfo
    read: Callable[[], Array]
    pieces: Callable[[], Iterator[memoryview]] | None = None
    checked: bool = False  # whether checksums are seen to on the way
    mapped: Callable[[], Array | None] | None = None

    @classmethod
    def same(cls, source: Checkpoint, name: str, new_name: str | None = None) -> Recipe:
        """A tensor of `source` as it is, by the same or another name."""
        info = source.infos[name].renamed(new_name or name)
        return cls(
            info,
            partial(source.read, name),
            partial(source.pieces, name),
            source.has_checksum(name),
            partial(source.mapped, name),
        )


class Derived(Checkpoint):
    """A checkpoint whose tensors are made from others when they are read. Closing it closes its `sources`."""

    def __init__(
        self,
        path: Path,
        format: SourceFormat,
        recipes: Iterable[Recipe],
        *,
        sources: Sequence[Checkpoint] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._recipes = {recipe.info.name: recipe for recipe in recipes}
        super().__init__(path, format, {name: recipe.info for name, recipe in self._recipes.items()}, metadata)
        self._sources = tuple(sources)

    def read(self, name: str) -> Array:
        recipe = self._recipes[name]
        array = recipe.read()
        if array.shape != recipe.info.shape or array.dtype != recipe.info.dtype:
            raise AssertionError(f"{name}: made {array.dtype} {array.shape}, announced {recipe.info}")
        return array

    def pieces(self, name: str) -> Iterator[memoryview]:
        recipe = self._recipes[name]
        return recipe.pieces() if recipe.pieces is not None else super().pieces(name)

    def mapped(self, name: str) -> Array | None:
        mapped = self._recipes[name].mapped
        return mapped() if mapped is not None else None

    def has_checksum(self, name: str) -> bool:
        return self._recipes[name].checked

    def close(self) -> None:
        for source in self._sources:
            source.close()


def _memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def truncated(path: Path, name: str, offset: int) -> InputError:
    """The file ends inside tensor `name`."""
    what = f"the file is truncated: tensor '{name}' is cut off at byte {offset:,}"
    return InputError(what, where=path, fix="copy or download the file again")


def damaged(path: Path, name: str, part: Part) -> InputError:
    """The bytes of tensor `name` do not have the checksum that was written with them."""
    what = (
        f"the file is damaged: tensor '{name}' does not match its checksum "
        f"(bytes {part.offset:,} to {part.offset + part.nbytes:,})"
    )
    return InputError(what, where=path, fix="copy or download the file again")
