"""What is in a checkpoint and whether it is sound: `ckpt info` and `ckpt verify`."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spark13b.ckpt.dtypes import BFLOAT16, FLOAT16, Array, is_float
from spark13b.ckpt.metering import byte_meter
from spark13b.ckpt.mindspore_reader import whole_file_crc
from spark13b.ckpt.tensors import Checkpoint, TensorInfo
from spark13b.errors import InputError, SparkError
from spark13b.model.names import EMBEDDING, Kind, expected_shapes, kind_of, match_names
from spark13b.progress import SILENT, Progress

if TYPE_CHECKING:
    from spark13b.config.model import SparkConfig

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")
_EXPONENTS: dict[np.dtype[np.generic], tuple[type, int]] = {
    BFLOAT16: (np.uint16, 0x7F80),
    FLOAT16: (np.uint16, 0x7C00),
}  # the bits that are all set in nan and inf: four times as fast as isfinite for these two
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Family:
    """The same tensor of several layers: one name, with `{0..39}` for the number."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int


def families(infos: Iterable[TensorInfo], formats: Mapping[str, tuple[str, int]] | None = None) -> list[Family]:
    """The tensors, those of all layers taken together where shape and number format agree.

    `formats`: name -> the format in the file, where that is not the array's.
    """
    groups: dict[tuple[str, tuple[int, ...], str], list[str]] = {}
    for info in infos:
        found = _LAYER.search(info.name)
        key = _LAYER.sub("{}", info.name, count=1)
        format = formats[info.name][0] if formats is not None else info.dtype.name
        groups.setdefault((key, info.shape, format), []).append(found[0] if found else "")
    return [
        Family(name.replace("{}", _numbers(numbers), 1), shape, dtype, len(numbers))
        for (name, shape, dtype), numbers in groups.items()
    ]


def numbers_by_kind(checkpoint: Checkpoint) -> dict[Kind, int]:
    """How many numbers there are in weights, adapters, training state, masks and caches."""
    counts: Counter[Kind] = Counter()
    for name, info in checkpoint.infos.items():
        counts[kind_of(name)] += info.size
    return dict(counts)


def bytes_by_dtype(checkpoint: Checkpoint) -> dict[str, int]:
    """How many bytes there are of each number format in the file."""
    counts: Counter[str] = Counter()
    for format, nbytes in checkpoint.formats().values():
        counts[format] += nbytes
    return dict(counts)


def fitting_presets(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the built-in presets whose model has exactly these weights."""
    from spark13b.config import load_preset, preset_names

    weights = {name: tuple(shape) for name, shape in shapes.items() if kind_of(name) == "weight"}
    return [name for name in preset_names() if expected_shapes(load_preset(name).model) == weights]


def guessed_config(shapes: Mapping[str, tuple[int, ...]]) -> SparkConfig | None:
    """The model that these shapes belong to, by embedding, first layer and highest layer; None when they do not tell.

    The number of heads leaves no trace in the shapes; 1 stands for it.
    """
    from spark13b.config import SparkConfig

    embedding, gate = shapes.get(EMBEDDING), shapes.get("transformer.transformer.layers.0.mlp.fc0.weight")
    layers = [int(found[0]) for name in shapes if kind_of(name) == "weight" and (found := _LAYER.search(name))]
    if embedding is None or gate is None or len(embedding) != 2 or len(gate) != 2 or not layers:
        return None
    try:
        return SparkConfig(
            num_layers=max(layers) + 1,
            hidden_size=embedding[1],
            num_heads=1,
            ffn_hidden_size=2 * gate[0],
            vocab_size=embedding[0],
        )
    except ValueError:  # pydantic's: shapes that no model can have
        return None


def problems(
    checkpoint: Checkpoint, config: SparkConfig | None, *, progress: Progress = SILENT
) -> Iterator[SparkError]:
    """Read every tensor and yield what is wrong: names and shapes, damage, nan and inf.

    `config` None: names are compared with the model that the shapes themselves suggest.
    """
    model = config or guessed_config(checkpoint.shapes())
    if model is not None:
        try:
            match_names(checkpoint.shapes(), model, where=checkpoint.path)
        except InputError as error:
            yield error
    with byte_meter(progress, f"verifying {checkpoint.path.name}", checkpoint.nbytes) as advance:
        for name, info in checkpoint.infos.items():
            strange = 0
            try:
                for piece in checkpoint.pieces(name):  # of whole numbers too, for the checksum
                    strange += not_finite(np.frombuffer(piece, info.dtype)) if is_float(info.dtype) else 0
            except InputError as error:
                yield error
                continue
            if strange:
                what = f"tensor '{name}' holds {strange:,} numbers that are nan or infinite"
                yield InputError(what, where=checkpoint.path, fix="do not use these weights")
            advance(info.nbytes)
    if checkpoint.format == "ckpt" and checkpoint.path.is_file():
        yield from _whole_file(checkpoint.path)


def not_finite(array: Array) -> int:
    """How many numbers are nan or infinite."""
    if array.dtype in _EXPONENTS:
        bits, mask = _EXPONENTS[array.dtype]
        return int(np.count_nonzero((array.view(bits) & mask) == mask))
    return int(array.size - np.count_nonzero(np.isfinite(array)))


def _whole_file(path: Path) -> Iterator[InputError]:
    """The checksum over the whole file that MindSpore writes with `crc_check=True`."""
    trailer = whole_file_crc(path)
    if trailer is None:
        return
    expected, left = trailer
    crc = 0
    with open(path, "rb") as file:
        while left and (chunk := file.read(min(_CHUNK, left))):
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
    if crc != expected:
        what = "the file is damaged: it does not match MindSpore's checksum over the whole file"
        yield InputError(what, where=path, fix="copy or download the file again")


def _numbers(texts: list[str]) -> str:
    """'{0..39}' for a run, '{0,2,3}' for others, nothing for a tensor outside the layers."""
    numbers = sorted(int(text) for text in texts if text)
    if len(numbers) < 2:
        return str(numbers[0]) if numbers else "{}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"
