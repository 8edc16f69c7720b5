"""Read and write safetensors: a length, a JSON header (name -> dtype, shape, data_offsets), then the bytes.

The format is https://github.com/huggingface/safetensors. Our checksums stand in the header's `__metadata__` under the
key `spark13b` as JSON, `{"crc32": {name: 8 hex digits}}`; other readers pass over it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from spark13b.ckpt.dtypes import PIECE, SAFETENSORS, safetensors_name
from spark13b.ckpt.output_file import TensorWriter
from spark13b.ckpt.tensors import FileCheckpoint, Part, Stored, TensorInfo, truncated
from spark13b.errors import InputError

_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
_ROOM = 1 << 20  # bytes kept for the header of a file whose tensors are not known beforehand
_KEY = "spark13b"
_METADATA = "__metadata__"
_OF_THE_FORMAT = ("format", "crc_num")  # who wrote it, and MindSpore's checksum: untrue in a file made from this one


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes begins like safetensors."""
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and 2 <= length <= _LONGEST_HEADER and head[8:9] == b"{"


def open_safetensors(path: Path) -> FileCheckpoint:
    """Index a safetensors file. Raises InputError, naming the tensor and byte where the file is cut off."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    if len(text) < length:
        raise _broken(path, f"its header of {length:,} bytes is cut off at byte {size:,}")
    try:
        header: dict[str, Any] = json.loads(text)
        metadata = dict(header.pop(_METADATA, None) or {})
        stored = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, f"its header cannot be read ({error})") from error
    _check_extents(path, stored, size)
    checksums = _checksums(metadata.pop(_KEY, ""))
    for key in _OF_THE_FORMAT:
        metadata.pop(key, None)
    for name, item in stored.items():
        if name in checksums:
            part = item.parts[0]
            stored[name] = Stored(item.info, (Part(part.offset, part.nbytes, checksums[name]),))
    return FileCheckpoint(path, "safetensors", stored, metadata)


class SafetensorsWriter(TensorWriter):
    """Writes tensors in the order they come; the header is filled in at the end.

    `plan` tells the tensors beforehand when they are known, so that the header has its true length; else 1 MiB is kept.
    """

    def __init__(self, path: Path, plan: Sequence[TensorInfo] | None, metadata: Mapping[str, str]) -> None:
        super().__init__(path)
        self._metadata = {"format": "ms", **metadata}
        self._entries: dict[str, dict[str, Any]] = {}
        self._crcs: dict[str, str] = {}
        self._end = 0
        self._room = _ROOM if plan is None else self._planned(plan)
        self._file.seek(8 + self._room)

    def add(self, info: TensorInfo, pieces: Iterable[memoryview]) -> None:
        """Append one tensor; `pieces` are its bytes."""
        if info.name == _METADATA:
            raise InputError(f"a safetensors file cannot hold a tensor named '{_METADATA}'", fix="write ckpt or torch")
        crc = 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
            self._file.write(piece)
        self._enter(info, crc)

    def finish(self) -> None:
        """Write the header."""
        header = self._header()
        if len(header) > self._room:
            self._move_data(len(header))
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))

    def _enter(self, info: TensorInfo, crc: int) -> None:
        offsets = [self._end, self._end + info.nbytes]
        self._entries[info.name] = {
            "dtype": safetensors_name(info.dtype),
            "shape": list(info.shape),
            "data_offsets": offsets,
        }
        self._crcs[info.name] = f"{crc:08x}"
        self._end = offsets[1]

    def _header(self) -> bytes:
        metadata = {**self._metadata, _KEY: json.dumps({"crc32": self._crcs}, separators=(",", ":"))}
        header = {_METADATA: metadata, **self._entries}
        return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()

    def _planned(self, plan: Sequence[TensorInfo]) -> int:
        """The header's length for these tensors: the data begins at a multiple of 64 bytes, a cache line."""
        for info in plan:
            self._enter(info, 0)
        length = len(self._header())
        self._entries, self._crcs, self._end = {}, {}, 0
        return -(-(8 + length) // 64) * 64 - 8

    def _move_data(self, needed: int) -> None:
        """Make room for a header longer than was kept; from the back, so that nothing is written over."""
        room = -(-needed // 4096) * 4096
        for start in reversed(range(0, self._end, PIECE)):
            length = min(PIECE, self._end - start)
            self._file.seek(8 + self._room + start)
            chunk = self._file.read(length)
            self._file.seek(8 + room + start)
            self._file.write(chunk)
        self._room = room


def _stored(path: Path, name: str, entry: Mapping[str, Any], base: int) -> Stored:
    type_name = entry["dtype"]
    if type_name not in SAFETENSORS:
        raise InputError(
            f"tensor '{name}' has the number format '{type_name}', which spark13b does not read",
            where=path,
            fix=f"known are {', '.join(SAFETENSORS)}",
        )
    info = TensorInfo(name, tuple(map(int, entry["shape"])), SAFETENSORS[type_name])
    begin, end = map(int, entry["data_offsets"])
    if end - begin != info.nbytes or begin < 0 or any(size < 0 for size in info.shape):
        what = f"tensor '{name}' at byte {base + begin:,} has {end - begin:,} bytes instead of {info.nbytes:,}"
        raise _broken(path, what)
    return Stored(info, (Part(base + begin, info.nbytes),))


def _check_extents(path: Path, stored: Mapping[str, Stored], size: int) -> None:
    """No tensor beyond the end of the file, none inside another."""
    order = sorted(stored.values(), key=lambda item: item.parts[0].offset)
    for item in order:
        part = item.parts[0]
        if part.offset + part.nbytes > size:
            raise truncated(path, item.info.name, size)
    for one, two in pairwise(order):
        if one.parts[0].offset + one.parts[0].nbytes > two.parts[0].offset:
            raise _broken(path, f"tensors '{one.info.name}' and '{two.info.name}' overlap")


def _checksums(text: str) -> dict[str, int]:
    try:
        return {name: int(value, 16) for name, value in json.loads(text)["crc32"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # none, or another version's
        return {}


def _broken(path: Path, how: str) -> InputError:
    return InputError(f"the file is damaged: {how}", where=path, fix="copy or download the file again")
