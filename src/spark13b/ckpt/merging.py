"""Fold LoRA adapters into their base: W + B A alpha / rank, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spark13b.ckpt.adapters import CARD, Adapters
from spark13b.ckpt.casting import cast
from spark13b.ckpt.dtypes import PIECE, Array, as_bytes, is_float, to_float32
from spark13b.ckpt.inspecting import guessed_config
from spark13b.ckpt.streams import blocks_of
from spark13b.ckpt.tensors import Checkpoint, Derived, Recipe, TensorInfo
from spark13b.errors import InputError
from spark13b.model.names import adapter_names, adapter_shapes, kind_of, match_adapters, match_names


def merged(base: Checkpoint, adapters: Adapters, dtype: np.dtype[np.generic] | None = None) -> Checkpoint:
    """The weights of `base` with the adapters folded in; closing it closes both.

    Sums are float32 and become the base's own number format, or `dtype`, rounded to nearest even; weights without
    adapters stay as they are. What else `base` holds is left out. Raises InputError: the base is no complete model, the
    adapters do not fit it; and while reading, when a sum is beyond the format's largest number.
    """
    config = guessed_config(base.shapes())
    if config is None:
        what = "this is no complete Spark model, which adapters could be folded into"
        raise InputError(what, where=base.path, fix="see 'spark13b ckpt info'; torch's files need 'convert torch2ms'")
    match_names(base.shapes(), config, where=base.path)
    match_adapters(adapters.tensors.shapes(), config, adapters.lora, where=adapters.tensors.path)
    adapted = {name.rpartition(".")[0] + ".weight" for name in adapter_shapes(config, adapters.lora)}
    recipes = []
    for name, info in base.infos.items():
        if kind_of(name) != "weight":
            continue
        if name not in adapted:
            recipes.append(Recipe.same(base, name))
            continue
        if not is_float(info.dtype):
            raise InputError(f"tensor '{name}' is {info.dtype.name}", where=base.path, fix="merge into float weights")
        work = _Fold(base, adapters, info, dtype or info.dtype)
        target = TensorInfo(name, info.shape, work.dtype)
        recipes.append(Recipe(target, work.read, work.pieces, base.has_checksum(name)))
    metadata = {key: text for key, text in base.metadata.items() if key != CARD}
    return Derived(base.path, base.format, recipes, sources=[base, adapters.tensors], metadata=metadata)


@dataclass(frozen=True)
class _Fold:
    """One matrix of the base with its adapter."""

    base: Checkpoint
    adapters: Adapters
    info: TensorInfo
    dtype: np.dtype[np.generic]

    def read(self) -> Array:
        return np.concatenate(list(self._rows()))

    def pieces(self) -> Iterator[memoryview]:
        return map(as_bytes, self._rows())

    def _rows(self) -> Iterator[Array]:
        """The sums, some rows at a time."""
        linear, lora = self.info.name.rpartition(".")[0], self.adapters.lora
        a, b = (to_float32(self.adapters.tensors.read(name)) for name in adapter_names(linear))
        b = b * np.float32(lora.alpha / lora.rank)
        columns = self.info.shape[1]
        row_bytes = columns * self.info.dtype.itemsize
        first = overflows = 0
        for block in blocks_of(self.base.pieces(self.info.name), max(1, PIECE // row_bytes) * row_bytes):
            rows = np.frombuffer(block, self.info.dtype).reshape(-1, columns)
            total = b[first : first + len(rows)] @ a
            total += to_float32(rows)
            converted, beyond = cast(total, self.dtype)
            first, overflows = first + len(rows), overflows + beyond
            yield converted
        if overflows:
            raise InputError(
                f"{overflows:,} numbers of tensor '{self.info.name}' are beyond the largest {self.dtype.name} "
                "with the adapters folded in",
                where=self.base.path,
                fix="add --dtype bfloat16 or --dtype float32",
            )
