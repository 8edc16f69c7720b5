"""Read torch's files (`.pt`, `.pth`, `.bin`) without torch: the zip format since 1.6, and the older stream of pickles.

A state dict may be flat, or nested one level (`{"model": {...}, "iteration": 3}`). The zip format keeps a CRC-32 of
every storage, which is checked when a tensor is read (0 stands for none: torch can be told not to compute it).
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from spark13b.ckpt.dtypes import Array, as_bytes, pieces_of
from spark13b.ckpt.tensors import FileCheckpoint, Part, Stored, TensorInfo, truncated
from spark13b.ckpt.torch_pickle import TensorRef, read_pickle
from spark13b.errors import InputError

ZIP_HEAD = b"PK\x03\x04"
LEGACY_HEAD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of torch's magic number
METADATA_RECORD = "spark13b.json"  # ours; torch passes over it
_LOCAL = struct.Struct("<4s5H3I2H")  # a zip record's own head
_LONGEST_PICKLE = 1 << 30  # bytes
_SEARCHED = 64 << 20  # bytes looked through at once
_SEARCHED_HEAD = 1 << 10


@dataclass(frozen=True)
class _Extent:
    """Where a storage's bytes are."""

    offset: int
    nbytes: int
    crc: int | None


def open_torch(path: Path) -> FileCheckpoint:
    """Index a torch file. Raises InputError: not a state dict, cut off, damaged, or a pickle that could run code."""
    with open(path, "rb") as file:
        legacy = file.read(len(LEGACY_HEAD)) == LEGACY_HEAD
        file.seek(0)
        root, extents, metadata = _legacy(file, path) if legacy else _zip(file, path)
    return TorchCheckpoint(path, _flat(root, path), extents, metadata)


class TorchCheckpoint(FileCheckpoint):
    """A torch file: tensors may share storages and may be views with strides."""

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, TensorRef],
        extents: Mapping[str, _Extent],
        metadata: Mapping[str, str],
    ) -> None:
        stored = {}
        self._views: dict[str, TensorRef] = {}
        for name, ref in tensors.items():
            info = TensorInfo(name, ref.shape, ref.dtype)
            stored[name] = Stored(info, (_part(path, name, ref, extents),))
            if not _contiguous(ref):
                self._views[name] = ref
        super().__init__(path, "torch", stored, metadata)

    def read(self, name: str) -> Array:
        ref = self._views.get(name)
        if ref is None:
            return super().read(name)
        parts = self._stored[name].parts
        base = np.empty(sum(part.nbytes for part in parts) // ref.dtype.itemsize, ref.dtype)
        self._fill(name, parts, as_bytes(base))
        strides = tuple(stride * ref.dtype.itemsize for stride in ref.strides)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(base, ref.shape, strides))

    def pieces(self, name: str) -> Iterator[memoryview]:
        return pieces_of(self.read(name)) if name in self._views else super().pieces(name)


def _zip(file: BinaryIO, path: Path) -> tuple[Any, dict[str, _Extent], dict[str, str]]:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # of a version or a name that cannot be
        raise _cut_off(file, path) from error
    records = {record.filename: record for record in archive.infolist()}
    index = next((name for name in records if name.endswith("/data.pkl") and name.count("/") == 1), None)
    if index is None:
        raise InputError("the zip file is not a torch checkpoint: it has no data.pkl", where=path)
    root = index.removesuffix("data.pkl")
    _check_byte_order(file, records, root, path)
    extents = {
        name.removeprefix(f"{root}data/"): _extent(file, record, path)
        for name, record in records.items()
        if name.startswith(f"{root}data/")
    }
    metadata = _metadata(file, records.get(root + METADATA_RECORD), path)
    return read_pickle(BytesIO(_record(file, records[index], path)), path), extents, metadata


def _metadata(file: BinaryIO, record: zipfile.ZipInfo | None, path: Path) -> dict[str, str]:
    """The strings that our writer put beside the tensors."""
    try:
        return (
            {str(name): str(text) for name, text in json.loads(_record(file, record, path)).items()} if record else {}
        )
    except (ValueError, AttributeError):  # somebody else's record of that name
        return {}


def _extent(file: BinaryIO, record: zipfile.ZipInfo, path: Path) -> _Extent:
    return _Extent(_data_offset(file, record, path), record.file_size, record.CRC or None)


def _record(file: BinaryIO, record: zipfile.ZipInfo, path: Path) -> bytes:
    """A small record, whole."""
    if record.file_size > _LONGEST_PICKLE:
        what = f"the file's '{record.filename}' of {record.file_size:,} bytes is no list of tensors"
        raise InputError(what, where=path)
    file.seek(_data_offset(file, record, path))
    data = file.read(record.file_size)
    if record.CRC and zlib.crc32(data) != record.CRC:
        what = f"the file is damaged: '{record.filename}' at byte {record.header_offset:,} does not match its checksum"
        raise InputError(what, where=path, fix="copy or download the file again")
    return data


def _check_byte_order(file: BinaryIO, records: Mapping[str, zipfile.ZipInfo], root: str, path: Path) -> None:
    name = f"{root}byteorder"
    if name in records and _record(file, records[name], path) != b"little":
        raise InputError("the file was written on a big-endian machine", where=path, fix="save it on a usual one")


def _data_offset(file: BinaryIO, record: zipfile.ZipInfo, path: Path) -> int:
    if record.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"the file's '{record.filename}' is compressed", where=path, fix="save it with torch.save")
    file.seek(max(0, record.header_offset))
    head = file.read(_LOCAL.size) if record.header_offset >= 0 else b""
    if len(head) < _LOCAL.size or not head.startswith(ZIP_HEAD):
        what = f"the file is damaged: no record '{record.filename}' at byte {record.header_offset:,}"
        raise InputError(what, where=path, fix="copy or download the file again")
    name_length, extra_length = _LOCAL.unpack(head)[-2:]
    return record.header_offset + _LOCAL.size + int(name_length) + int(extra_length)


def _cut_off(file: BinaryIO, path: Path) -> InputError:
    """The error for a zip without its table of contents: find the record that is cut off, and whose tensor it is.

    The records do not tell their lengths beforehand, so the last one is looked for from the end.
    """
    size = path.stat().st_size
    file.seek(0)
    first = _record_name(file.read(_SEARCHED_HEAD), 0)
    if first is None:
        return truncated(path, "?", size)
    root = first.partition("/")[0]
    names = _names_by_storage(file, path, first)
    end = size
    while end > 0:
        start = max(0, end - _SEARCHED)
        file.seek(start)
        window = file.read(end - start + _SEARCHED_HEAD)  # a head may lie across the border
        at = window.rfind(ZIP_HEAD)
        while at >= 0:
            name = _record_name(window, at) or ""
            if name.startswith(f"{root}/"):
                return truncated(path, names.get(name.removeprefix(f"{root}/data/"), name), size)
            at = window.rfind(ZIP_HEAD, 0, at)
        end = start
    return truncated(path, first, size)


def _record_name(data: bytes, at: int) -> str | None:
    """The name in the record's head at `at`, None when there is no whole head."""
    if not data.startswith(ZIP_HEAD, at) or len(data) < at + _LOCAL.size:
        return None
    length = _LOCAL.unpack_from(data, at)[-2]
    return data[at + _LOCAL.size : at + _LOCAL.size + length].decode("utf-8", "replace")


def _names_by_storage(file: BinaryIO, path: Path, first: str) -> dict[str, str]:
    """Storage key -> tensor name, when the list of tensors comes first, as torch writes it."""
    if not first.endswith("/data.pkl"):
        return {}
    file.seek(0)
    name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))[-2:]
    file.seek(_LOCAL.size + name_length + extra_length)
    try:
        return {ref.storage.key: name for name, ref in _flat(read_pickle(file, path), path).items()}
    except InputError:
        return {}


def _legacy(file: BinaryIO, path: Path) -> tuple[Any, dict[str, _Extent], dict[str, str]]:
    """Five pickles (magic number, version, system, the object, storage keys), then length and bytes of each storage."""
    read_pickle(file, path)
    if read_pickle(file, path) != 1001:
        raise InputError("the file is of an unknown version of torch's old format", where=path)
    system = read_pickle(file, path)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise InputError("the file was written on a big-endian machine", where=path, fix="save it on a usual one")
    root = read_pickle(file, path)
    keys = read_pickle(file, path)
    sizes = {ref.storage.key: ref.dtype.itemsize for ref in _flat(root, path).values()}
    names = {ref.storage.key: name for name, ref in _flat(root, path).items()}
    extents, at, end = {}, file.tell(), path.stat().st_size
    for key in map(str, keys):
        file.seek(at)
        nbytes = int.from_bytes(file.read(8), "little") * sizes.get(key, 1)
        if at + 8 + nbytes > end:
            raise truncated(path, names.get(key, key), end)
        extents[key] = _Extent(at + 8, nbytes, None)
        at += 8 + nbytes
    return root, extents, {}


def _flat(root: Any, path: Path) -> dict[str, TensorRef]:
    """Name -> tensor of a state dict that is flat or nested one level. What is no tensor is passed over."""
    if isinstance(root, Mapping):
        tensors = {str(name): value for name, value in root.items() if isinstance(value, TensorRef)}
        for outer, value in root.items():
            inner = value if isinstance(value, Mapping) else {}
            for name, ref in inner.items():
                if not isinstance(ref, TensorRef):
                    continue
                if str(name) in tensors:
                    fix = "save a file with one state dict"
                    raise InputError(f"'{name}' stands twice, once in '{outer}'", where=path, fix=fix)
                tensors[str(name)] = ref
        if tensors or not root:
            return tensors
    fix = "save the model's state_dict(), flat or nested one level"
    raise InputError("the torch file holds no state dict of tensors", where=path, fix=fix)


def _part(path: Path, name: str, ref: TensorRef, extents: Mapping[str, _Extent]) -> Part:
    """The bytes a tensor needs of its storage; the checksum goes with it when that is the whole storage."""
    extent = extents.get(ref.storage.key)
    if extent is None:
        raise InputError(f"the file is damaged: the storage of tensor '{name}' is missing", where=path)
    count = 1 + sum((size - 1) * stride for size, stride in zip(ref.shape, ref.strides, strict=True))
    if 0 in ref.shape:
        count = 0
    start, nbytes = ref.offset * ref.dtype.itemsize, count * ref.dtype.itemsize
    if min(ref.offset, *ref.strides, *ref.shape, 0) < 0 or start + nbytes > extent.nbytes:
        what = f"tensor '{name}' needs bytes {start:,} to {start + nbytes:,} of a storage of {extent.nbytes:,}"
        raise InputError(f"the file is damaged: {what}", where=path, fix="copy or download the file again")
    whole = (start, nbytes) == (0, extent.nbytes)
    return Part(extent.offset + start, nbytes, extent.crc if whole else None)


def _contiguous(ref: TensorRef) -> bool:
    expected = 1
    for size, stride in zip(reversed(ref.shape), reversed(ref.strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in ref.shape
        expected *= size
    return True
