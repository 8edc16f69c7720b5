"""Read MindSpore's `.ckpt` files without MindSpore: find each tensor in the protobuf stream, read it when asked for.

The format is `mindspore/train/checkpoint.proto`, a stream of `Checkpoint` messages:

    Checkpoint { repeated Value value = 1; int64 values = 1313 }
    Value      { string tag = 1; TensorProto tensor = 2; MapTensorProto maptensor = 3; fixed32 crc32 = 1313 }
    TensorProto{ repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }

Both fields 1313 are ours (`mindspore_writer` tells about them); protobuf readers pass over fields they do not know.
A tensor above 512 MB is cut into several values with the same tag, each with the whole tensor's dims. MindSpore ends a
file saved with `crc_check` in `crc_num` and ten bytes of big-endian CRC-32 over all that stands before.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from spark13b.ckpt.dtypes import MINDSPORE
from spark13b.ckpt.tensors import FileCheckpoint, Part, Stored, TensorInfo, truncated
from spark13b.errors import InputError

OUR_FIELD = 1313
CRC_MARK = b"crc_num"
CRC_TRAILER = len(CRC_MARK) + 10  # bytes
# Encrypted files begin with one of these (little-endian), as written by mindspore 2.9.0 for AES-GCM, AES-CBC, SM4-CBC.
_CIPHER_MAGICS = (0x7F3A5ED8, 0x7F3A5ED9, 0x7F3A5EDA)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_NAME = 1 << 16  # bytes; longer is a damaged length


@dataclass
class _Value:
    """One `Value` message: a tensor, or one cut of it."""

    start: int
    tag: str = ""
    dims: list[int] = field(default_factory=list)
    tensor_type: str = ""
    content: int = 0
    nbytes: int = 0
    seed: int = 0
    crc: int | None = None


def looks_like_ckpt(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a protobuf `Checkpoint`: a value, and in it a tag."""
    if head[:1] != b"\x0a":
        return False
    at = 1
    while at < min(len(head), 11) and head[at] & 0x80:
        at += 1
    return head[at + 1 : at + 2] == b"\x0a"


def looks_encrypted(head: bytes) -> bool:
    """Whether MindSpore encrypted the file (`save_checkpoint(enc_key=...)`)."""
    return len(head) >= 4 and int.from_bytes(head[:4], "little") in _CIPHER_MAGICS


def open_ckpt(path: Path) -> FileCheckpoint:
    """Index a `.ckpt` file. Raises InputError, naming the tensor and byte where the file is cut off or damaged."""
    stored: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    with open(path, "rb", buffering=4096) as file:
        cuts: list[_Value] = []
        for value in _values(_Stream(file, path)):
            if cuts and value.tag != cuts[0].tag:
                _keep(path, file, cuts, stored, metadata)
                cuts = []
            cuts.append(value)
        if cuts:
            _keep(path, file, cuts, stored, metadata)
    return FileCheckpoint(path, "ckpt", stored, metadata)


def whole_file_crc(path: Path) -> tuple[int, int] | None:
    """(CRC-32 that MindSpore wrote at the end, bytes it covers), or None when the file has none."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - CRC_TRAILER))
        trailer = file.read()
    if not trailer.startswith(CRC_MARK) or len(trailer) != CRC_TRAILER:
        return None
    return int.from_bytes(trailer[len(CRC_MARK) :], "big"), size - CRC_TRAILER


def _keep(path: Path, file: BinaryIO, cuts: list[_Value], stored: dict[str, Stored], metadata: dict[str, str]) -> None:
    """Note a tensor (or a string) that is now complete."""
    first = cuts[0]
    nbytes = sum(cut.nbytes for cut in cuts)
    if first.tensor_type == "str":  # MindSpore writes strings as UTF-32
        file.seek(first.content)
        metadata[first.tag] = file.read(first.nbytes).decode("utf-32-le", "replace").rstrip("\0")
        return
    if first.tensor_type not in MINDSPORE:
        raise InputError(
            f"tensor '{first.tag}' has the number format '{first.tensor_type}', which spark13b does not read",
            where=path,
            fix=f"known are {', '.join(MINDSPORE)}",
        )
    shape = () if first.dims == [0] and nbytes else tuple(first.dims)  # older versions wrote a single number so
    info = TensorInfo(first.tag, shape, MINDSPORE[first.tensor_type])
    if any(cut.dims != first.dims or cut.tensor_type != first.tensor_type for cut in cuts) or info.nbytes != nbytes:
        raise InputError(
            f"the file is damaged: tensor '{first.tag}' at byte {first.start:,} has {nbytes:,} bytes, "
            f"but {info.dtype.name} {list(shape)} needs {info.nbytes:,}",
            where=path,
            fix="copy or download the file again",
        )
    stored[first.tag] = Stored(info, tuple(Part(cut.content, cut.nbytes, cut.crc, cut.seed) for cut in cuts))


def _values(stream: _Stream) -> Iterator[_Value]:
    count, ours, ended, tag = 0, False, False, ""
    while stream.at < stream.end:
        start = stream.at
        number, kind = stream.key()
        if (number, kind) == (OUR_FIELD, _VARINT):
            if stream.varint() != count:
                raise stream.damaged(start, f"does not tell the {count:,} values before it")
            ended = True
        elif (number, kind) == (1, _BYTES):
            length = stream.varint()
            value = _value(stream, start, stream.at + length)
            count, ended, ours, tag = count + 1, False, ours or value.crc is not None, value.tag
            yield value
        else:  # a field of a later version
            stream.skip(kind)
    if ours and not ended:
        what = f"the file is truncated: it ends at byte {stream.end:,}, after tensor '{tag}', without its end mark"
        raise InputError(what, where=stream.path, fix="copy or download the file again")


def _value(stream: _Stream, start: int, end: int) -> _Value:
    value = _Value(start)
    begin = stream.at
    while stream.at < end:
        number, kind = stream.key()
        if (number, kind) == (1, _BYTES):
            value.tag = stream.text()
        elif (number, kind) == (2, _BYTES):
            length = stream.varint()
            _tensor(stream, value, begin, stream.at + length)
        elif (number, kind) == (3, _BYTES):
            fix = "save the checkpoint without it"
            raise InputError(f"'{value.tag}' is a MapParameter (hash table)", where=stream.path, fix=fix)
        elif (number, kind) == (OUR_FIELD, _FIXED32):
            value.crc = int.from_bytes(stream.take(4), "little")
        else:
            stream.skip(kind)
    if stream.at != end or not value.tag or not value.tensor_type:
        raise stream.damaged(start)
    return value


def _tensor(stream: _Stream, value: _Value, begin: int, end: int) -> None:
    while stream.at < end:
        number, kind = stream.key()
        if (number, kind) == (1, _VARINT):
            value.dims.append(stream.varint())
        elif (number, kind) == (1, _BYTES):  # packed, as proto3 would write it
            length = stream.varint()
            stop = stream.at + length
            while stream.at < stop:
                value.dims.append(stream.varint())
        elif (number, kind) == (2, _BYTES):
            value.tensor_type = stream.text()
        elif (number, kind) == (3, _BYTES):
            value.nbytes = stream.varint()
            value.content = stream.at
            value.seed = stream.crc_since(begin)
            if value.content + value.nbytes > stream.size:
                raise truncated(stream.path, value.tag, stream.size)
            stream.skip(_BYTES, value.nbytes)
        else:
            stream.skip(kind)
    if stream.at != end:
        raise stream.damaged(value.start)


class _Stream:
    """The wire format of protobuf, read forward from a file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self.path = path
        self.at = 0
        self.size = path.stat().st_size
        trailer = whole_file_crc(path)
        self.end = self.size if trailer is None else trailer[1]

    def take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise self.damaged(self.at, "ends in the middle of a tensor's head")
        self.at += count
        return data

    def varint(self) -> int:
        result = 0
        for shift in range(0, 64, 7):
            byte = self.take(1)[0]
            result |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return result
        raise self.damaged(self.at)

    def key(self) -> tuple[int, int]:
        value = self.varint()
        return value >> 3, value & 7

    def text(self) -> str:
        length = self.varint()
        if length > _LONGEST_NAME:
            raise self.damaged(self.at)
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(self.at) from error

    def skip(self, kind: int, length: int | None = None) -> None:
        """Pass over a field; `length` when its length was read already."""
        if kind == _VARINT:
            self.varint()
            return
        if kind == _BYTES and length is None:
            length = self.varint()
        step = {_FIXED64: 8, _FIXED32: 4, _BYTES: length}.get(kind)
        if step is None or self.at + step > self.size:
            raise self.damaged(self.at)
        self._file.seek(step, 1)
        self.at += step

    def crc_since(self, begin: int) -> int:
        """CRC-32 of the bytes from `begin` to here."""
        self._file.seek(begin)
        return zlib.crc32(self._file.read(self.at - begin))

    def damaged(self, at: int, how: str = "is no MindSpore checkpoint") -> InputError:
        what = f"the file is damaged: what stands at byte {at:,} {how}"
        return InputError(what, where=self.path, fix="copy or download the file again")
