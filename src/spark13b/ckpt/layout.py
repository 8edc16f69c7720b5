"""How a model is cut for several devices: which rank holds which part of which tensor.

Rank r of data_parallel x model_parallel devices is number r % model_parallel of data-parallel group
r // model_parallel. Matrices are cut as Megatron does: q, k, v, fc0, fc1 and the embedding by rows, out_proj and fc2 by
columns. With `optimizer_shard` Adam's state is cut once more, by rows, over the groups; where the rows cannot be
divided it stays whole, as in MindSpore.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spark13b.ckpt.dtypes import Array, named
from spark13b.ckpt.tensors import TensorInfo
from spark13b.errors import InputError
from spark13b.model.names import kind_of, model_axis
from spark13b.run_folder import SLICES_MANIFEST

MANIFEST = SLICES_MANIFEST
RANK_FILE = "rank_{}/model.ckpt"


@dataclass(frozen=True)
class Layout:
    """How many devices share the work, and how."""

    data_parallel: int = 1
    model_parallel: int = 1
    optimizer_shard: bool = False

    @property
    def devices(self) -> int:
        """Ranks in all."""
        return self.data_parallel * self.model_parallel

    @property
    def distinct_ranks(self) -> int:
        """Ranks 0..n-1 that hold everything; the others repeat one of them."""
        return self.devices if self.optimizer_shard else self.model_parallel


@dataclass(frozen=True)
class Cut:
    """How one whole tensor is cut: along `axis` over model_parallel, and by rows over data_parallel when `sharded`."""

    info: TensorInfo
    axis: int | None
    sharded: bool

    def part(self, array: Array, layout: Layout, rank: int) -> Array:
        """What `rank` holds of the whole `array`; a view."""
        group, number = divmod(rank, layout.model_parallel)
        if self.axis is not None:
            array = _part(array, self.axis, number, layout.model_parallel)
        return _part(array, 0, group, layout.data_parallel) if self.sharded else array

    def part_info(self, layout: Layout) -> TensorInfo:
        """Shape of what every rank holds."""
        shape = list(self.info.shape)
        if self.axis is not None:
            shape[self.axis] //= layout.model_parallel
        if self.sharded:
            shape[0] //= layout.data_parallel
        return TensorInfo(self.info.name, tuple(shape), self.info.dtype)


def cut_of(info: TensorInfo, layout: Layout) -> Cut:
    """How a tensor is cut under `layout`. Raises InputError when model_parallel does not divide it."""
    axis = model_axis(info.name, len(info.shape)) if layout.model_parallel > 1 else None
    if axis is not None and info.shape[axis] % layout.model_parallel:
        raise InputError(
            f"model_parallel {layout.model_parallel} does not divide axis {axis} of '{info.name}' {list(info.shape)}",
            fix=f"choose a divisor of {info.shape[axis]}",
        )
    whole = Cut(info, axis, False)
    rows = whole.part_info(layout).shape[:1]
    sharded = layout.optimizer_shard and layout.data_parallel > 1 and kind_of(info.name) == "training"
    return Cut(info, axis, sharded and bool(rows) and rows[0] > 0 and rows[0] % layout.data_parallel == 0)


def rank_folders(folder: Path) -> list[Path]:
    """`rank_0`, `rank_1`, ... in `folder`, in order of their numbers."""
    ranks = [path for path in folder.glob("rank_*") if path.is_dir() and path.name.removeprefix("rank_").isdigit()]
    return sorted(ranks, key=lambda path: int(path.name.removeprefix("rank_")))


class _TensorEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    shape: tuple[int, ...]
    dtype: str
    axis: int | None
    sharded: bool = False


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["spark13b slices"] = "spark13b slices"
    version: Literal[1] = 1
    data_parallel: int = Field(ge=1)
    model_parallel: int = Field(ge=1)
    optimizer_shard: bool
    tensors: dict[str, _TensorEntry]


def manifest_text(layout: Layout, cuts: Iterable[Cut]) -> str:
    """The manifest that goes beside `rank_0/`, `rank_1/`, ...: JSON that tells how each tensor was cut."""
    tensors = {
        cut.info.name: _TensorEntry(shape=cut.info.shape, dtype=cut.info.dtype.name, axis=cut.axis, sharded=cut.sharded)
        for cut in cuts
    }
    manifest = _Manifest(
        data_parallel=layout.data_parallel,
        model_parallel=layout.model_parallel,
        optimizer_shard=layout.optimizer_shard,
        tensors=tensors,
    )
    return manifest.model_dump_json(indent=1)


def read_manifest(folder: Path) -> tuple[Layout, dict[str, Cut]]:
    """The manifest in `folder`. Raises InputError."""
    path = folder / MANIFEST
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        what = f"the manifest of the slices is broken: {key}: {first['msg']}"
        raise InputError(what, where=path, fix="copy the folder again") from error
    layout = Layout(manifest.data_parallel, manifest.model_parallel, manifest.optimizer_shard)
    return layout, {
        name: Cut(TensorInfo(name, entry.shape, named(entry.dtype)), entry.axis, entry.sharded)
        for name, entry in manifest.tensors.items()
    }


def _part(array: Array, axis: int, number: int, parts: int) -> Array:
    size = array.shape[axis] // parts
    index = [slice(None)] * array.ndim
    index[axis] = slice(number * size, (number + 1) * size)
    return array[tuple(index)]
