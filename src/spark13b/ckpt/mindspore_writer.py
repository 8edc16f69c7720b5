"""Write MindSpore's `.ckpt` files one tensor at a time, as `mindspore.save_checkpoint` does.

`mindspore_reader` tells the format. Each value ends in field 1313, a CRC-32 of its own bytes from the tag to the end of
the content: a flipped bit is found, and found in its tensor, wherever the file goes. The file ends in another field
1313, the number of values, because a protobuf stream that is cut off between two of them looks whole. MindSpore passes
over both.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from spark13b.ckpt.dtypes import mindspore_name
from spark13b.ckpt.mindspore_reader import OUR_FIELD
from spark13b.ckpt.output_file import TensorWriter
from spark13b.ckpt.tensors import TensorInfo

_CUT = 512 << 20  # bytes of one value, MindSpore's own limit


class CkptWriter(TensorWriter):
    """Writes tensors in the order they come."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        super().__init__(path)
        self._metadata = metadata
        self._values = 0

    def add(self, info: TensorInfo, pieces: Iterable[memoryview]) -> None:
        """Append one tensor; `pieces` are its bytes."""
        content, type_name = iter(pieces), mindspore_name(info.dtype)
        left = b""
        for start in range(0, max(1, info.nbytes), _CUT):
            left = self._value(info.name, info.shape, type_name, min(_CUT, info.nbytes - start), left, content)

    def finish(self) -> None:
        """Append the strings and the end mark; nothing may follow."""
        for name, text in self._metadata.items():
            data = text.encode("utf-32-le")
            self._value(name, (0,), "str", len(data), data, iter(()))
        self._file.write(varint(OUR_FIELD << 3) + varint(self._values))

    def _value(
        self,
        name: str,
        shape: tuple[int, ...],
        type_name: str,
        nbytes: int,
        first: bytes,
        pieces: Iterator[memoryview],
    ) -> bytes:
        """One value of `nbytes`: `first`, then what `pieces` yield. What the last piece has too much is given back."""
        head = b"".join(b"\x08" + varint(size) for size in shape)
        head += b"\x12" + _sized(type_name.encode()) + b"\x1a" + varint(nbytes)
        body = b"\x0a" + _sized(name.encode()) + b"\x12" + varint(len(head) + nbytes) + head
        crc_key = varint(OUR_FIELD << 3 | 5)
        self._file.write(b"\x0a" + varint(len(body) + nbytes + len(crc_key) + 4) + body)
        crc, piece = zlib.crc32(body), memoryview(first)
        while nbytes:
            piece = piece or next(pieces)
            now, piece = piece[:nbytes], piece[nbytes:]
            crc = zlib.crc32(now, crc)
            self._file.write(now)
            nbytes -= len(now)
        self._file.write(crc_key + crc.to_bytes(4, "little"))
        self._values += 1
        return bytes(piece)


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
