"""The original's torch names and MindSpore's names for the same parameters, both ways (SPEC section 5).

torch keeps `fc0` and `fc1` in one matrix, row by row in turn, and `q`, `k`, `v` in another, one third each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from spark13b.ckpt.dtypes import Array
from spark13b.ckpt.streams import Workspace, copies, side_by_side
from spark13b.ckpt.tensors import Checkpoint, Derived, Recipe, TensorInfo
from spark13b.errors import InputError
from spark13b.model.names import kind_of

_PREFIX = "transformer."
_NORM = {"weight": "gamma", "bias": "beta"}
_TORCH_OF_NORM = {"gamma": "weight", "beta": "bias"}
_TORCH_NORM = re.compile(r"norm\.(weight|bias)$")
_MINDSPORE_NORM = re.compile(r"norm\.(gamma|beta)$")
_TORCH_EMBEDDING = re.compile(r"(^|\.)embedding\.word_embeddings\.weight$")
_GATED = re.compile(r"(^|\.)fc1\.(weight|bias)$")
_FUSED = ".q_k_v_"
_SPLIT = re.compile(r"\.([qkv])_(?=[^.]*\.(weight|bias)$)")


def from_torch(source: Checkpoint) -> Checkpoint:
    """`source` with torch's names as a checkpoint with MindSpore's. Raises InputError where a matrix cannot be cut.

    `_extra_state`, masks and caches are left out.
    """
    workspace = Workspace()
    recipes: dict[str, Recipe] = {}
    for name in source:
        if name.endswith("_extra_state") or kind_of(name) == "buffer":
            continue
        if name.startswith(_PREFIX + _PREFIX) or name.endswith(".embedding_table"):
            fix = "they need no conversion; 'spark13b ckpt convert' changes the file format"
            raise InputError(f"the names are MindSpore's already, e.g. '{name}'", where=source.path, fix=fix)
        for recipe in _from_torch(name, source, workspace):
            if recipe.info.name in recipes:
                what = f"two tensors would be named '{recipe.info.name}'"
                raise InputError(what, where=source.path, fix="remove one of them")
            recipes[recipe.info.name] = recipe
    return Derived(source.path, "ckpt", recipes.values(), sources=[source], metadata=source.metadata)


def with_own_names(source: Checkpoint) -> Checkpoint:
    """`source` by the names that a model loads: converted as by `from_torch` when it has torch's."""
    return from_torch(source) if any(_TORCH_EMBEDDING.search(name) for name in source) else source


def to_torch(source: Checkpoint) -> Checkpoint:
    """The inverse of `from_torch`. Weights only: training state, adapters, masks and caches are left out.

    Raises InputError when a part of a joint matrix is missing or does not fit the others.
    """
    recipes: dict[str, Recipe] = {}
    for name in source:
        if kind_of(name) != "weight":
            continue
        target, parts = _to_torch(name, source)
        if target in recipes:
            continue  # a joint matrix, made when its first part was met
        if len(parts) == 1:
            recipes[target] = Recipe.same(source, name, target)
            continue
        infos = [_part(source, part, name) for part in parts]
        first = infos[0]
        if len({(info.shape, info.dtype) for info in infos}) > 1 or not first.shape:
            shapes = ", ".join(f"{info.name} {info.dtype} {list(info.shape)}" for info in infos)
            raise InputError(f"the parts of '{target}' do not fit: {shapes}", where=source.path)
        whole = TensorInfo(target, (first.shape[0] * len(parts), *first.shape[1:]), first.dtype)
        pieces = partial(_in_turn if len(parts) == 2 else _one_after_the_other, source, parts)
        checked = all(map(source.has_checksum, parts))
        recipes[target] = Recipe(whole, partial(_read, whole, pieces), pieces, checked)
    return Derived(source.path, "torch", recipes.values(), sources=[source], metadata=source.metadata)


def _from_torch(name: str, source: Checkpoint, workspace: Workspace) -> list[Recipe]:
    """How one tensor of a torch file becomes one, two or three of MindSpore's."""
    target, info = _PREFIX + name, source.infos[name]
    if target.endswith("embedding.word_embeddings.weight"):
        target = target.removesuffix("weight") + "embedding_table"
    norm = _TORCH_NORM.search(target)
    if norm:
        target = target.removesuffix(norm[1]) + _NORM[norm[1]]
    if _GATED.search(name):
        shape = _rows_cut(info, 2, source)
        cuts = {re.sub(r"(^|\.)fc1\.", r"\1fc0.", target): slice(0, None, 2), target: slice(1, None, 2)}
    elif _FUSED in name:
        shape = _rows_cut(info, 3, source)
        cuts = {
            target.replace(_FUSED, f".{letter}_"): slice(number * shape[0], (number + 1) * shape[0])
            for number, letter in enumerate("qkv")
        }
    else:
        return [Recipe.same(source, name, target)]
    recipes = []
    for part, rows in cuts.items():
        pieces = partial(_rows, workspace, source, name, rows)
        part_info = TensorInfo(part, shape, info.dtype)
        recipes.append(Recipe(part_info, partial(_read, part_info, pieces), pieces, source.has_checksum(name)))
    return recipes


def _to_torch(name: str, source: Checkpoint) -> tuple[str, list[str]]:
    """The name in a torch file of one of MindSpore's tensors, and the tensors that are joined there."""
    if not name.startswith(_PREFIX):
        fix = "name a checkpoint with MindSpore's names, 'transformer....'"
        raise InputError(f"'{name}' is no parameter of the model", where=source.path, fix=fix)
    target = name.removeprefix(_PREFIX)
    if target.endswith("embedding.word_embeddings.embedding_table"):
        target = target.removesuffix("embedding_table") + "weight"
    norm = _MINDSPORE_NORM.search(target)
    if norm:
        target = target.removesuffix(norm[1]) + _TORCH_OF_NORM[norm[1]]
    if re.search(r"(^|\.)fc[01]\.(weight|bias)$", name):
        parts = [re.sub(r"(^|\.)fc[01]\.", rf"\1fc{number}.", name) for number in (0, 1)]
        return re.sub(r"(^|\.)fc0\.", r"\1fc1.", target), parts
    if _SPLIT.search(name):
        return _SPLIT.sub(_FUSED, target), [_SPLIT.sub(f".{letter}_", name) for letter in "qkv"]
    return target, [name]


def _part(source: Checkpoint, part: str, seen: str) -> TensorInfo:
    if part not in source.infos:
        what = f"'{part}' is missing: torch keeps it in one matrix with '{seen}'"
        raise InputError(what, where=source.path, fix="convert a complete checkpoint")
    return source.infos[part]


def _read(info: TensorInfo, pieces: Callable[[], Iterator[memoryview]]) -> Array:
    """The whole array of what comes in pieces."""
    return np.frombuffer(bytearray().join(pieces()), info.dtype).reshape(info.shape)


def _rows(workspace: Workspace, source: Checkpoint, name: str, rows: slice) -> Iterator[memoryview]:
    yield from copies(workspace.load(source, name)[rows])


def _in_turn(source: Checkpoint, parts: list[str]) -> Iterator[memoryview]:
    """Row 0 of the first, row 0 of the second, row 1 of the first, ..."""
    info = source.infos[parts[0]]
    return side_by_side([source.pieces(part) for part in parts], max(1, info.nbytes // max(1, info.shape[0])))


def _one_after_the_other(source: Checkpoint, parts: list[str]) -> Iterator[memoryview]:
    for part in parts:
        yield from source.pieces(part)


def _rows_cut(info: TensorInfo, parts: int, source: Checkpoint) -> tuple[int, ...]:
    if not info.shape or info.shape[0] % parts:
        rows = info.shape[0] if info.shape else 1
        raise InputError(f"'{info.name}' has {rows} rows, not a multiple of {parts}", where=source.path)
    return (info.shape[0] // parts, *info.shape[1:])
