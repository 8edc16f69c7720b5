"""Quantise a checkpoint's weights: `ckpt quantize`. A tensor is read, rounded and written in blocks of rows."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from spark13b.ckpt.casting import with_dtype
from spark13b.ckpt.conversion import Conversion, convert
from spark13b.ckpt.dtypes import BFLOAT16, FLOAT32, Array, as_bytes
from spark13b.ckpt.quantized import Card, Choice
from spark13b.ckpt.selection import only
from spark13b.ckpt.streams import blocks_of
from spark13b.ckpt.tensors import Checkpoint, Derived, Recipe, TensorInfo
from spark13b.ckpt.torch_names import with_own_names
from spark13b.errors import InputError
from spark13b.model.names import is_embedding
from spark13b.native.matrix import Matrix
from spark13b.native.packing import GROUPS, LARGEST, STRIP, fits, quantize
from spark13b.progress import SILENT, Progress

_BLOCK = 4 << 20  # bytes of float32 that are rounded by one thread at once
_ALIGNED = 64  # bytes: tensors that begin there are read fastest where they lie


@dataclass(frozen=True)
class Wanted:
    """What weights become: `bits` for those of the layers, `embedding_bits` (16 is bfloat16) for the embedding, which
    also makes the logits; names that fit a pattern of `keep` become bfloat16. `group` inputs share a scale."""

    bits: int
    embedding_bits: int
    group: int = 64
    keep: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise InputError(f"weights cannot have {self.bits} bits", where="--bits", fix="choose 8 or 4")
        if self.embedding_bits not in (16, 8):
            what = f"the embedding cannot have {self.embedding_bits} bits"
            raise InputError(what, where="--embedding-bits", fix="choose 16 or 8")
        if self.group not in GROUPS:
            what = f"a scale cannot be shared by {self.group} inputs"
            raise InputError(what, where="--group", fix=f"choose {', '.join(map(str, GROUPS))}")

    @classmethod
    def usual(cls, bits: int) -> Wanted:
        """What `ckpt quantize --bits` makes: the embedding is rounded less than the layers."""
        return cls(bits, 8 if bits == 4 else 16)

    def nbytes(self, info: TensorInfo) -> int:
        """Bytes that a weight takes."""
        choice = self.choice(info)
        if choice is not None:
            array, scales = choice.stored(info.name, info.shape)
            return array.nbytes + scales.nbytes
        return info.size * (2 if len(info.shape) == 2 else 4)

    def choice(self, info: TensorInfo) -> Choice | None:
        """How a weight is quantised, or None when it is not."""
        bits = self.embedding_bits if is_embedding(info.name) else self.bits
        kept = any(fnmatchcase(info.name, pattern) for pattern in self.keep)
        if len(info.shape) != 2 or kept or bits not in (8, 4) or not fits(info.shape[1], self.group):
            return None
        return Choice.model_validate({"bits": bits, "group": self.group})


def quantized(source: Checkpoint, wanted: Wanted) -> tuple[Checkpoint, list[str]]:
    """The weights of `source`, to be written, and the names of matrices that stay bfloat16 for their widths.

    Vectors become float32. Training state, adapters and caches are left out. Reading raises InputError where a weight
    is nan, infinite or absurdly large.
    """
    source = only(with_own_names(source), ["weight"])
    for pattern in wanted.keep:
        if not any(fnmatchcase(name, pattern) for name in source):
            fix = "see 'spark13b ckpt info' for the names"
            raise InputError(f"no weight is named like '{pattern}'", where="--keep", fix=fix)
    wide = with_dtype(source, FLOAT32, cast_embedding=True, cast_norms=True)
    half = with_dtype(source, BFLOAT16, cast_embedding=True, cast_norms=True)
    recipes, choices, narrow = [], {}, []
    for name, info in source.infos.items():
        choice = wanted.choice(info)
        if choice is not None:
            choices[name] = choice
            recipes += _Rounding(wide, info, choice).recipes()
        else:
            recipes.append(Recipe.same(half if len(info.shape) == 2 else wide, name))
            asked = any(fnmatchcase(name, pattern) for pattern in wanted.keep)
            if len(info.shape) == 2 and not asked and not (is_embedding(name) and wanted.embedding_bits == 16):
                narrow.append(name)
    recipes.sort(key=lambda recipe: _place(recipe.info))
    metadata = {**source.metadata, **Card(tensors=choices).metadata()}
    return Derived(source.path, "safetensors", recipes, sources=[source], metadata=metadata), narrow


def quantize_checkpoint(
    source: Checkpoint,
    target: Path,
    wanted: Wanted,
    *,
    origin: Path | None = None,
    shard_size: int | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Conversion:
    """Write the quantised weights of `source` as safetensors: see `conversion.convert`."""
    result, narrow = quantized(source, wanted)
    if narrow:
        few = ", ".join(narrow[:2]) + (", ..." if narrow[2:] else "")
        progress.note(f"{len(narrow)} matrices stay bfloat16, for their widths do not fit: {few}")
    return convert(
        result,
        target,
        "safetensors",
        origin=origin or source.path,
        shard_size=shard_size,
        force=force,
        progress=progress,
    )


@dataclass
class _Rounding:
    """One weight on its way: its levels, and its scales, which come about with them and are written after them."""

    source: Checkpoint  # of float32
    info: TensorInfo
    choice: Choice
    scales: list[Array] = field(default_factory=list)

    def recipes(self) -> list[Recipe]:
        array, scales = self.choice.stored(self.info.name, self.info.shape)
        checked = self.source.has_checksum(self.info.name)
        return [
            Recipe(array, lambda: self._whole()[0], self._pieces, checked),
            Recipe(scales, self._scales, checked=checked),
        ]

    def _whole(self) -> tuple[Array, Array]:
        matrices = list(self._rounded())
        scales = [matrix.scales for matrix in matrices if matrix.scales is not None]
        return np.concatenate([matrix.array for matrix in matrices]), np.concatenate(scales)

    def _pieces(self) -> Iterator[memoryview]:
        self.scales = []
        for matrix in self._rounded():
            assert matrix.scales is not None
            self.scales.append(matrix.scales)
            yield as_bytes(matrix.array)

    def _scales(self) -> Array:
        scales, self.scales = self.scales, []
        return np.concatenate(scales) if scales else self._whole()[1]

    def _rounded(self) -> Iterator[Matrix]:
        """Blocks of rows, as many at once as there are cores: NumPy lets other threads run meanwhile."""
        inputs = self.info.shape[1]
        rows = max(1, _BLOCK // (4 * inputs) // STRIP) * STRIP
        cores = len(os.sched_getaffinity(0))
        waiting: deque[Future[Matrix]] = deque()
        with ThreadPoolExecutor(cores) as pool:
            for block in blocks_of(self.source.pieces(self.info.name), rows * inputs * 4):
                waiting.append(pool.submit(self._round, np.frombuffer(block, np.float32).reshape(-1, inputs)))
                if len(waiting) > cores:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _round(self, weights: Array) -> Matrix:
        if not (weights.max() <= LARGEST and weights.min() >= -LARGEST):
            what = f"tensor '{self.info.name}' holds numbers that are nan, infinite or beyond {LARGEST:g}"
            raise InputError(what, where=self.source.path, fix="'spark13b ckpt verify' shows them all")
        return quantize(weights, self.choice.bits, self.choice.group)


def _place(info: TensorInfo) -> tuple[bool, int]:
    """Tensors that fill whole lines of the processor's cache come first, so that they all begin with one."""
    return info.nbytes % _ALIGNED != 0, -info.dtype.itemsize if info.nbytes % _ALIGNED else 0
