"""The original's torch names and MindSpore's names for the same parameters, both ways (SPEC section 5).

torch keeps `fc0` and `fc1` in one matrix, row by row in turn, and `q`, `k`, `v` in another, one third each.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np

from spark13b.ckpt.dtypes import Array
from spark13b.ckpt.tensors import Checkpoint, Derived, Recipe, TensorInfo
from spark13b.errors import InputError
from spark13b.model.names import kind_of

_PREFIX = "transformer."
_NORM = {"weight": "gamma", "bias": "beta"}
_TORCH_NORM = re.compile(r"norm\.(weight|bias)$")
_MINDSPORE_NORM = re.compile(r"norm\.(gamma|beta)$")
_GATED = re.compile(r"(^|\.)fc1\.(weight|bias)$")
_FUSED = ".q_k_v_"
_SPLIT = re.compile(r"\.([qkv])_(?=[^.]*\.(weight|bias)$)")


def from_torch(source: Checkpoint) -> Checkpoint:
    """`source` with torch's names as a checkpoint with MindSpore's. Raises InputError where a matrix cannot be cut.

    `_extra_state`, masks and caches are left out.
    """
    last = _LastRead(source)
    recipes: dict[str, Recipe] = {}
    for name, info in source.infos.items():
        if name.endswith("_extra_state") or kind_of(name) == "buffer":
            continue
        if name.startswith(_PREFIX + _PREFIX) or name.endswith(".embedding_table"):
            fix = "they need no conversion; 'spark13b ckpt convert' changes the file format"
            raise InputError(f"the names are MindSpore's already, e.g. '{name}'", where=source.path, fix=fix)
        checked = source.has_checksum(name)
        for target, (shape, make) in _from_torch(name, info, last, source).items():
            if target in recipes:
                raise InputError(f"two tensors would be named '{target}'", where=source.path, fix="remove one of them")
            recipes[target] = Recipe(TensorInfo(target, shape, info.dtype), make, checked=checked)
    return Derived(source.path, "ckpt", recipes.values(), sources=[source], metadata=source.metadata)


def to_torch(source: Checkpoint) -> Checkpoint:
    """The inverse of `from_torch`. Weights only: training state, adapters, masks and caches are left out.

    Raises InputError when a part of a joint matrix is missing or does not fit the others.
    """
    recipes: dict[str, Recipe] = {}
    for name in source.infos:
        if kind_of(name) != "weight":
            continue
        target, parts, join = _to_torch(name, source)
        if target in recipes:
            continue  # a joint matrix, made when its first part was met
        infos = [_part(source, part, name) for part in parts]
        if len({(info.shape, info.dtype) for info in infos}) > 1:
            shapes = ", ".join(f"{info.name} {info.dtype} {list(info.shape)}" for info in infos)
            raise InputError(f"the parts of '{target}' do not fit: {shapes}", where=source.path)
        first = infos[0]
        shape = (first.shape[0] * len(parts), *first.shape[1:]) if len(parts) > 1 else first.shape
        whole = TensorInfo(target, shape, first.dtype)
        checked = all(source.has_checksum(part) for part in parts)
        recipes[target] = Recipe(whole, partial(_joined, source, parts, join, shape), checked=checked)
    return Derived(source.path, "torch", recipes.values(), sources=[source], metadata=source.metadata)


def _from_torch(
    name: str, info: TensorInfo, last: _LastRead, source: Checkpoint
) -> dict[str, tuple[tuple[int, ...], Callable[[], Array]]]:
    """Target name -> shape and recipe for one tensor of a torch file."""
    target = _PREFIX + name
    if target.endswith("embedding.word_embeddings.weight"):
        target = target.removesuffix("weight") + "embedding_table"
    norm = _TORCH_NORM.search(target)
    if norm:
        target = target.removesuffix(norm[1]) + _NORM[norm[1]]
    if _GATED.search(name):
        shape = _rows_cut(info, 2, source)
        gate = re.sub(r"(^|\.)fc1\.", r"\1fc0.", target)
        return {
            new: (shape, partial(_rows, last, name, slice(start, None, 2))) for start, new in enumerate((gate, target))
        }
    if _FUSED in name:
        shape = _rows_cut(info, 3, source)
        return {
            target.replace(_FUSED, f".{letter}_"): (
                shape,
                partial(_rows, last, name, slice(number * shape[0], (number + 1) * shape[0])),
            )
            for number, letter in enumerate("qkv")
        }
    return {target: (info.shape, partial(last.read, name))}


def _to_torch(name: str, source: Checkpoint) -> tuple[str, list[str], Callable[[list[Array]], Array]]:
    """Target name, the names it is made of, and how they are joined, for one tensor with MindSpore's names."""
    if not name.startswith(_PREFIX):
        fix = "name a checkpoint with MindSpore's names, 'transformer....'"
        raise InputError(f"'{name}' is no parameter of the model", where=source.path, fix=fix)
    target = name.removeprefix(_PREFIX)
    if target.endswith("embedding.word_embeddings.embedding_table"):
        target = target.removesuffix("embedding_table") + "weight"
    norm = _MINDSPORE_NORM.search(target)
    if norm:
        target = target.removesuffix(norm[1]) + {new: old for old, new in _NORM.items()}[norm[1]]
    gate = re.search(r"(^|\.)fc[01]\.(weight|bias)$", name)
    if gate:
        parts = [re.sub(r"(^|\.)fc[01]\.", rf"\1fc{number}.", name) for number in (0, 1)]
        return re.sub(r"(^|\.)fc0\.", r"\1fc1.", target), parts, _interleaved
    if _SPLIT.search(name):
        return _SPLIT.sub(_FUSED, target), [_SPLIT.sub(f".{letter}_", name) for letter in "qkv"], np.concatenate
    return target, [name], _alone


def _part(source: Checkpoint, part: str, seen: str) -> TensorInfo:
    if part not in source.infos:
        what = f"'{part}' is missing: torch keeps it in one matrix with '{seen}'"
        raise InputError(what, where=source.path, fix="convert a complete checkpoint")
    return source.infos[part]


def _joined(
    source: Checkpoint, parts: list[str], join: Callable[[list[Array]], Array], shape: tuple[int, ...]
) -> Array:
    return join([source.read(part) for part in parts]).reshape(shape)


def _alone(parts: list[Array]) -> Array:
    return parts[0]


def _interleaved(parts: list[Array]) -> Array:
    """Row 0 of the first, row 0 of the second, row 1 of the first, ..."""
    return np.stack(parts, axis=1)


def _rows(last: _LastRead, name: str, rows: slice) -> Array:
    return last.read(name)[rows]


def _rows_cut(info: TensorInfo, parts: int, source: Checkpoint) -> tuple[int, ...]:
    if not info.shape or info.shape[0] % parts:
        rows = info.shape[0] if info.shape else 1
        raise InputError(f"'{info.name}' has {rows} rows, not a multiple of {parts}", where=source.path)
    return (info.shape[0] // parts, *info.shape[1:])


class _LastRead:
    """Reads tensors, and keeps the last one while its parts are asked for one after the other."""

    def __init__(self, source: Checkpoint) -> None:
        self._source = source
        self._name: str | None = None
        self._array: Array | None = None

    def read(self, name: str) -> Array:
        if name != self._name or self._array is None:
            self._array = None  # let go of the old one before the new one is read
            self._array, self._name = self._source.read(name), name
        return self._array
