"""Files of quantised weights: int8 or int4 with scales, as 'spark13b ckpt quantize' writes them.

A weight `NAME` is two tensors: `NAME`, int8 (outputs, inputs) or uint8 (outputs, inputs / 2) with two weights a byte,
and `NAME.scales`, bfloat16 (outputs, inputs / group), both in strips of rows; native/packing.py says what they mean.
The file's metadata hold, under `quantized`, a `Card` as JSON: bits and group of each such weight. All else is as in
every checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from spark13b.ckpt.dtypes import BFLOAT16, FLOAT32, PIECE, Array, as_bytes
from spark13b.ckpt.streams import blocks_of
from spark13b.ckpt.tensors import Checkpoint, TensorInfo
from spark13b.errors import InputError
from spark13b.native.matrix import Matrix
from spark13b.native.packing import STRIP, dequantize, fits

KEY = "quantized"
SCALES = ".scales"
_INT8, _UINT8 = np.dtype(np.int8), np.dtype(np.uint8)


class Choice(BaseModel):
    """How a weight is quantised."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bits: Literal[8, 4]
    group: Literal[32, 64, 128]

    def __str__(self) -> str:
        return f"int{self.bits}/{self.group}"

    def stored(self, name: str, shape: tuple[int, ...]) -> tuple[TensorInfo, TensorInfo]:
        """The two tensors of a weight of that shape."""
        outputs, inputs = shape
        array = TensorInfo(name, shape, _INT8) if self.bits == 8 else TensorInfo(name, (outputs, inputs // 2), _UINT8)
        return array, TensorInfo(name + SCALES, (outputs, inputs // self.group), BFLOAT16)


class Card(BaseModel):
    """What a file says about its quantised weights."""

    model_config = ConfigDict(extra="forbid")
    version: Literal[2] = 2  # 1 had rows one after the other
    tensors: dict[str, Choice]

    def metadata(self) -> dict[str, str]:
        """For the file."""
        return {KEY: self.model_dump_json()}


class QuantizedCheckpoint(Checkpoint):
    """Weights as what they stand for, float32, made from the tensors of `stored` when they are read.

    `choices`: name -> how it is stored, of the quantised ones.
    """

    def __init__(self, stored: Checkpoint, choices: Mapping[str, Choice], infos: Mapping[str, TensorInfo]) -> None:
        kept = {key: value for key, value in stored.metadata.items() if key != KEY}
        super().__init__(stored.path, stored.format, infos, kept)
        self.stored, self.choices = stored, dict(choices)

    def formats(self) -> dict[str, tuple[str, int]]:
        stored = self.stored.formats()
        formats = {name: stored[name] for name in self.infos}
        for name, choice in self.choices.items():
            nbytes = self.stored.infos[name].nbytes + self.stored.infos[name + SCALES].nbytes
            formats[name] = str(choice), nbytes
        return formats

    def matrix(self, name: str) -> Matrix:
        """A quantised weight as it is stored; in the file's own memory-mapped pages where they can be."""
        array, scales = (self._mapped_or_read(one) for one in (name, name + SCALES))
        return Matrix(array, scales, self.choices[name].group)

    def mapped(self, name: str) -> Array | None:
        return None if name in self.choices else self.stored.mapped(name)

    def read(self, name: str) -> Array:
        if name not in self.choices:
            return self.stored.read(name)
        return dequantize(Matrix(self.stored.read(name), self.stored.read(name + SCALES), self.choices[name].group))

    def pieces(self, name: str) -> Iterator[memoryview]:
        if name not in self.choices:
            yield from self.stored.pieces(name)
            return
        info, choice = self.stored.infos[name], self.choices[name]
        scales = self.stored.read(name + SCALES)
        width = info.shape[1]
        rows = max(1, PIECE // (4 * self.infos[name].shape[1]) // STRIP) * STRIP
        done = 0
        for block in blocks_of(self.stored.pieces(name), rows * width):
            array = np.frombuffer(block, info.dtype).reshape(-1, width)
            yield as_bytes(dequantize(Matrix(array, scales[done : done + len(array)], choice.group)))
            done += len(array)

    def has_checksum(self, name: str) -> bool:
        return all(map(self.stored.has_checksum, [name, name + SCALES] if name in self.choices else [name]))

    def close(self) -> None:
        self.stored.close()

    def _mapped_or_read(self, name: str) -> Array:
        mapped = self.stored.mapped(name)
        return self.stored.read(name) if mapped is None else mapped


def kept_as(base: Checkpoint) -> str:
    """How a checkpoint keeps its weights: `float`, or bits and group of those that are quantised, as `int4/64`."""
    choices = base.choices.values() if isinstance(base, QuantizedCheckpoint) else ()
    return " and ".join(sorted(set(map(str, choices)))) or "float"


def need_quantized(base: Checkpoint, bits: int | None) -> None:
    """Raise InputError when a preset is for weights of `bits` bits and `base` is not quantised; None asks for none."""
    if bits is not None and not isinstance(base, QuantizedCheckpoint):
        raise InputError(
            f"the preset is for weights of {bits} bits, and these are not quantised",
            where=base.path,
            fix=f"run 'spark13b ckpt quantize {base.path} DST --bits {bits}' and load DST, "
            "or add --set model.weight_bits=null",
        )


def refuse_folding(base: Checkpoint) -> None:
    """Raise InputError when adapters are to be added to quantised weights, as with --merge-adapter."""
    if isinstance(base, QuantizedCheckpoint):
        raise InputError(
            "adapters cannot be added to quantised weights: these have no room for what adapters change",
            where=base.path,
            fix="leave out --merge-adapter, and they are computed beside the weights; "
            "or merge them into the float weights with 'spark13b ckpt merge-lora', and quantise the result",
        )


def with_own_weights(stored: Checkpoint) -> Checkpoint:
    """`stored`, or what its quantised weights stand for when it says that there are some.

    Raises InputError when the tensors are not what the file says they are.
    """
    if KEY not in stored.metadata:
        return stored
    try:
        card = Card.model_validate_json(stored.metadata[KEY])
    except (ValidationError, TypeError) as error:
        if isinstance(error, ValidationError) and any(
            one["loc"] == ("version",) and one["input"] == 1 for one in error.errors()
        ):
            what = "the weights were quantised by an older spark13b, which packed them in another order"
            fix = "quantise the original again with 'spark13b ckpt quantize'"
            raise InputError(what, where=stored.path, fix=fix) from None
        detail = f": {error.errors()[0]['msg']}" if isinstance(error, ValidationError) else ""
        raise _broken(stored, f"what it says about its weights cannot be read{detail}") from error
    scales = {name + SCALES for name in card.tensors}
    infos = {name: info for name, info in stored.infos.items() if name not in scales}
    for name, choice in card.tensors.items():
        infos[name] = _checked(stored, name, choice)
    return QuantizedCheckpoint(stored, card.tensors, infos)


def _checked(stored: Checkpoint, name: str, choice: Choice) -> TensorInfo:
    """The weight that two tensors stand for. Raises InputError when they do not belong together."""
    found = [stored.infos.get(one) for one in (name, name + SCALES)]
    array, scales = found
    if array is None or scales is None:
        raise _broken(stored, f"tensor '{name}' or its scales are missing")
    inputs = array.shape[-1] * (1 if choice.bits == 8 else 2) if array.shape else 0
    shape = (*array.shape[:-1], inputs)
    if len(shape) != 2 or not prod(shape) or not fits(inputs, choice.group):
        raise _broken(stored, f"tensor '{name}' of shape {list(array.shape)} is not {choice}")
    if choice.stored(name, shape) != (array, scales):
        what = f"tensor '{name}' is {array.dtype.name} {list(array.shape)} with scales {scales.dtype.name}"
        raise _broken(stored, f"{what} {list(scales.shape)}, which is not {choice}")
    return TensorInfo(name, shape, FLOAT32)


def _broken(stored: Checkpoint, how: str) -> InputError:
    fix = "copy it again, or quantise the weights again"
    return InputError(f"the quantised weights are damaged: {how}", where=stored.path, fix=fix)
