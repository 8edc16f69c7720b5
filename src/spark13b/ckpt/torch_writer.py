"""Write torch's zip format one tensor at a time, without torch; `torch.load(weights_only=True, mmap=True)` reads it.

The archive holds `data.pkl`, `byteorder`, `version` and `data/0`, `data/1`, ..., each at a multiple of 64 bytes. When
the tensors are not known beforehand `data.pkl` comes last; a zip's table of contents makes the order free.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from spark13b.ckpt.dtypes import torch_storage_name
from spark13b.ckpt.output_file import TensorWriter
from spark13b.ckpt.tensors import TensorInfo
from spark13b.ckpt.torch_reader import METADATA_RECORD

_ALIGNMENT = 64  # bytes, as torch's own writer
_ROOT = "archive"


class TorchWriter(TensorWriter):
    """Writes tensors in the order they come, which is that of `plan` if there is one."""

    def __init__(self, path: Path, plan: Sequence[TensorInfo] | None, metadata: Mapping[str, str]) -> None:
        super().__init__(path)
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._infos: list[TensorInfo] = []
        self._plan, self._metadata = plan, metadata
        if plan is not None:
            self._small("data.pkl", state_dict_pickle(plan))
        self._small("byteorder", b"little")
        self._small("version", b"3\n")

    def __exit__(self, *exc: object) -> None:
        self._archive.fp = None  # or, where an error came between, it would finish the file when it is collected
        super().__exit__(*exc)

    def add(self, info: TensorInfo, pieces: Iterable[memoryview]) -> None:
        """Append one tensor; `pieces` are its bytes."""
        torch_storage_name(info.dtype)
        with self._archive.open(self._record(f"data/{len(self._infos)}"), "w", force_zip64=True) as out:
            for piece in pieces:
                out.write(piece)
        self._infos.append(info)

    def finish(self) -> None:
        """Write the list of tensors and the table of contents."""
        if self._metadata:
            self._small(METADATA_RECORD, json.dumps(dict(self._metadata), ensure_ascii=False).encode())
        if self._plan is None:
            self._small("data.pkl", state_dict_pickle(self._infos))
        self._archive.close()

    def _small(self, name: str, data: bytes) -> None:
        self._archive.writestr(self._record(name), data)

    def _record(self, name: str) -> zipfile.ZipInfo:
        record = zipfile.ZipInfo(f"{_ROOT}/{name}")
        if name.startswith("data/"):
            # The head is 30 bytes, the name, 20 bytes that zipfile adds for zip64, and our filling (a field "FB").
            start = self._file.tell() + 30 + len(record.filename) + 20 + 4
            filling = -start % _ALIGNMENT
            record.extra = struct.pack("<2sH", b"FB", filling) + b"Z" * filling
        return record


def state_dict_pickle(infos: Sequence[TensorInfo]) -> bytes:
    """The pickle (protocol 2) of `{name: tensor}` as torch writes it, storages numbered from 0.

    Written opcode by opcode: Python's pickler would have to import torch to name its functions.
    """
    out = [pickle.PROTO + b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for number, info in enumerate(infos):
        strides = [1]
        for size in reversed(info.shape[1:]):
            strides.insert(0, strides[0] * size)
        storage = [
            pickle.MARK,
            _text("storage"),
            _name("torch", torch_storage_name(info.dtype)),
            _text(str(number)),
            _text("cpu"),
            _int(info.size),
            pickle.TUPLE,
            pickle.BINPERSID,
        ]
        hooks = [_name("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE]
        out += [_text(info.name), _name("torch._utils", "_rebuild_tensor_v2"), pickle.MARK, *storage, _int(0)]
        out += [_ints(info.shape), _ints(tuple(strides[: len(info.shape)])), pickle.NEWFALSE, *hooks]
        out += [pickle.TUPLE, pickle.REDUCE]
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _int(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def _ints(values: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(map(_int, values)) + pickle.TUPLE
