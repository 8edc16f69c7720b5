"""Write MindSpore's `.ckpt` files one tensor at a time, as `mindspore.save_checkpoint` does.

The format stands in `mindspore_reader`.
Each value ends in field 1313, a CRC-32 of its own bytes from the tag to the end of the content: a flipped bit is found,
and found in its tensor, wherever the file goes. The file ends in another field 1313, the number of values, because a
protobuf stream that is cut off between two of them looks whole. MindSpore passes over both.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from spark13b.ckpt.dtypes import Array, as_bytes, mindspore_name
from spark13b.ckpt.mindspore_reader import OUR_FIELD

_CUT = 512 << 20  # bytes of one value, MindSpore's own limit
_CHUNK = 8 << 20  # bytes between two checksums: small enough for the cache to still hold what is then written


class CkptWriter:
    """Writes tensors in the order they come."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._metadata = metadata
        self._values = 0
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, array: Array) -> None:
        """Append one tensor."""
        data = as_bytes(array)
        for start in range(0, max(1, len(data)), _CUT):
            self._value(name, array.shape, mindspore_name(array.dtype), data[start : start + _CUT])

    def finish(self) -> None:
        """Append the strings and the end mark; nothing may follow."""
        for name, text in self._metadata.items():
            self._value(name, (0,), "str", as_bytes(np.frombuffer(text.encode("utf-32-le"), np.uint8)))
        self._write(varint(OUR_FIELD << 3) + varint(self._values))

    def _value(self, name: str, shape: tuple[int, ...], type_name: str, content: memoryview) -> None:
        head = b"".join(b"\x08" + varint(size) for size in shape)
        head += b"\x12" + _sized(type_name.encode()) + b"\x1a" + varint(len(content))
        body = b"\x0a" + _sized(name.encode()) + b"\x12" + varint(len(head) + len(content)) + head
        crc_key = varint(OUR_FIELD << 3 | 5)
        length = len(body) + len(content) + len(crc_key) + 4
        self._write(b"\x0a" + varint(length) + body)
        crc = zlib.crc32(body)
        for start in range(0, len(content), _CHUNK):
            chunk = content[start : start + _CHUNK]
            crc = zlib.crc32(chunk, crc)
            self._write(chunk)
        self._write(crc_key + crc.to_bytes(4, "little"))
        self._values += 1

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


def varint(value: int) -> bytes:
    """`value` >= 0 as protobuf's varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _sized(data: bytes) -> bytes:
    return varint(len(data)) + data
