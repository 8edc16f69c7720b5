"""Shards with an index, as the Hugging Face hub has them: `model-00001-of-00003.safetensors`, `*.index.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from spark13b.ckpt.tensors import Checkpoint, Derived, Recipe, TensorInfo
from spark13b.errors import InputError

SHARD_NAMES = {"safetensors": "model-{:05d}-of-{:05d}.safetensors", "torch": "pytorch_model-{:05d}-of-{:05d}.bin"}
INDEX_NAMES = {"safetensors": "model.safetensors.index.json", "torch": "pytorch_model.bin.index.json"}


class _Opener(Protocol):
    def __call__(self, path: Path) -> Checkpoint: ...


def batches(plan: Sequence[TensorInfo], shard_size: int) -> Iterator[list[TensorInfo]]:
    """Cut `plan` into runs of at most `shard_size` bytes; a tensor larger than that has a shard of its own."""
    batch: list[TensorInfo] = []
    filled = 0
    for info in plan:
        if batch and filled + info.nbytes > shard_size:
            yield batch
            batch, filled = [], 0
        batch.append(info)
        filled += info.nbytes
    if batch:
        yield batch


def index_text(files: Mapping[str, Sequence[TensorInfo]]) -> str:
    """The index of shards: file name -> the tensors in it."""
    total = sum(info.nbytes for infos in files.values() for info in infos)
    weight_map = {info.name: file for file, infos in files.items() for info in infos}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, ensure_ascii=False)


def open_shards(index: Path, open_file: _Opener) -> Checkpoint:
    """The shards of an index as one checkpoint. Raises InputError: a shard is missing, damaged, outside the folder."""
    weight_map = _weight_map(index)
    opened = {file: open_file(_shard(index, file)) for file in sorted(set(weight_map.values()))}
    metadata: dict[str, str] = {}
    for shard in opened.values():
        metadata |= shard.metadata
    recipes = []
    for name, file in weight_map.items():
        if name not in opened[file]:
            fix = "copy or download it again"
            raise InputError(f"tensor '{name}' is not in its shard '{file}'", where=index, fix=fix)
        recipes.append(Recipe.same(opened[file], name))
    sources = list(opened.values())
    format = sources[0].format if sources else "safetensors"
    return Derived(index.parent, format, recipes, sources=sources, metadata=metadata)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        value: Any = json.loads(index.read_text(encoding="utf-8"))
        return {str(name): str(file) for name, file in value["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = 'expected {"weight_map": {NAME: FILE}}'
        raise InputError("the index of the shards cannot be read", where=index, fix=fix) from error


def _shard(index: Path, file: str) -> Path:
    path = index.parent / file
    if path.parent != index.parent:  # "../" or an absolute path
        raise InputError(
            f"the shard '{file}' is outside the folder", where=index, fix="put the shards beside the index"
        )
    if not path.is_file():
        raise InputError(f"the shard '{file}' is missing", where=index, fix="copy or download it too")
    return path
