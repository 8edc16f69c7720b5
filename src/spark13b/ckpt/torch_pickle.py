"""The pickle inside a torch file, read without torch and without running anything.

A pickle is a program. This reader knows the few names that a state dict needs and answers each with a class of its own
that only keeps its arguments; every other name is refused before anything is made of it (as `torch.load` does with
`weights_only=True`). Tensors come back as `TensorRef`: which storage, where in it, shape and strides.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from spark13b.ckpt.dtypes import TORCH_DTYPES, TORCH_STORAGES
from spark13b.errors import InputError


@dataclass(frozen=True)
class StorageRef:
    """A run of bytes in the file, by its key; `dtype` is None for bytes without a type of their own."""

    key: str
    dtype: np.dtype[np.generic] | None
    size: int  # numbers, or bytes when dtype is None


@dataclass(frozen=True)
class TensorRef:
    """A tensor as the pickle tells it; `offset` and `strides` count numbers, not bytes."""

    storage: StorageRef
    dtype: np.dtype[np.generic]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
    """Stands for an object that a checkpoint may hold and that is of no use here (a device, a size, parsed options)."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.args = args

    def __setstate__(self, state: object) -> None:
        self.state = state


class RefusedPickle(InputError):
    """The pickle names something that a checkpoint of tensors has no need of."""


def read_pickle(file: BinaryIO, path: Path) -> Any:
    """The object in `file`, tensors as `TensorRef`. Raises RefusedPickle for a pickle that could run code."""
    try:
        return _Unpickler(file, path).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle may fail in any way; none of them runs anything
        what = f"the file is damaged: its list of tensors cannot be read ({error or type(error).__name__})"
        raise InputError(what, where=path, fix="copy or download the file again") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module == "torch" and name in TORCH_STORAGES:
            return _StorageType(TORCH_STORAGES[name])
        if module == "torch" and name in TORCH_DTYPES:
            return TORCH_DTYPES[name]
        raise RefusedPickle(
            f"the file is refused: its pickle asks for '{module}.{name}', which could run code",
            where=self._path,
            fix="nothing was run; get the weights from a source you trust, as safetensors or a plain state dict",
        )

    def persistent_load(self, pid: Any) -> StorageRef:
        kind, storage_type, key, _device, size, *_ = pid
        if kind not in ("storage", b"storage") or not isinstance(storage_type, _StorageType):
            raise ValueError("an unknown sort of storage")
        return StorageRef(str(key), storage_type.dtype, int(size))


@dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype[np.generic] | None


def _rebuild_v2(storage: StorageRef, offset: int, shape: Any, strides: Any, *_rest: object) -> TensorRef:
    if storage.dtype is None:
        raise ValueError("a tensor without a number format")
    return TensorRef(storage, storage.dtype, int(offset), _ints(shape), _ints(strides))


def _rebuild_v3(storage: StorageRef, offset: int, shape: Any, strides: Any, *rest: Any) -> TensorRef:
    dtype = next((item for item in rest if isinstance(item, np.dtype)), None)
    if dtype is None:
        raise ValueError("a tensor without a number format")
    return TensorRef(storage, dtype, int(offset), _ints(shape), _ints(strides))


def _rebuild_parameter(data: TensorRef, *_rest: object) -> TensorRef:
    return data


def _ints(values: Any) -> tuple[int, ...]:
    if isinstance(values, Opaque):  # torch.Size((2, 3))
        values = values.args[0] if values.args else ()
    return tuple(int(value) for value in values)


# Classes, never instances with code of others: what stands here is all that a pickle can reach.
_ALLOWED: dict[tuple[str, str], type | Callable[..., Any] | _StorageType] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "UntypedStorage"): _StorageType(None),
    ("torch.storage", "UntypedStorage"): _StorageType(None),
    ("torch", "Size"): Opaque,
    ("torch", "device"): Opaque,
    ("torch.serialization", "_get_layout"): Opaque,
    ("argparse", "Namespace"): Opaque,  # Megatron keeps its options beside the weights
    ("_io", "BytesIO"): Opaque,  # Transformer Engine's `_extra_state`
    ("_codecs", "encode"): Opaque,  # how protocol 2 writes its bytes
}
