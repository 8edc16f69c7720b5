"""A model's parameters for the native library: where their file lies, as far as it can be, else read into memory.

What is mapped is read when it is first used, and its checksum is not compared (`ckpt verify` does that). Processes that
use the same file share its pages, and the next start finds them in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spark13b.ckpt.dtypes import BFLOAT16, FLOAT16, FLOAT32, Array
from spark13b.ckpt.quantized import QuantizedCheckpoint
from spark13b.ckpt.streams import read_into
from spark13b.ckpt.tensors import Checkpoint, TensorInfo
from spark13b.config.model import SparkConfig
from spark13b.model.names import expected_shapes, is_embedding
from spark13b.native.matrix import Matrix

Dtypes = Sequence[np.dtype[np.generic]]

BESIDE_ADAPTERS: Dtypes = (FLOAT32, BFLOAT16)  # matrices that training reads as they lie
_VECTOR: Dtypes = (FLOAT32,)
_EXACT: Dtypes = (FLOAT32, BFLOAT16, FLOAT16)  # those that answers read so: a number is widened where it is multiplied


def answering_parameters(base: Checkpoint, config: SparkConfig) -> dict[str, Array | Matrix]:
    """The parameters of a checkpoint whose names fit, in a complete checkpoint's order; they stay when it is closed.

    Where products are float32, a matrix stays as its file has it: numbers of 16 bits are half the bytes, and exact.
    Where they are bfloat16, it is rounded once, for prompts and steps alike. The embedding goes by its own type.
    """
    return mapped_parameters(base, config, _answering_types(base, config))


def answering_bytes(base: Checkpoint, config: SparkConfig) -> int:
    """Bytes of all that, of a checkpoint whose names fit."""
    if isinstance(base, QuantizedCheckpoint):
        return base.stored.nbytes
    types, shapes = _answering_types(base, config), expected_shapes(config)
    held = {name: types[name] if len(shape) == 2 else _VECTOR for name, shape in shapes.items()}
    return sum(base.infos[name].size * held_as(base.infos[name], suits).itemsize for name, suits in held.items())


def mapped_parameters(base: Checkpoint, config: SparkConfig, types: Mapping[str, Dtypes]) -> dict[str, Array | Matrix]:
    """The same with the types that a matrix may have, full name -> those; others become the first.

    Vectors are float32.
    """
    parameters: dict[str, Array | Matrix] = {}
    for name, shape in expected_shapes(config).items():
        if isinstance(base, QuantizedCheckpoint) and name in base.choices:
            parameters[name] = base.matrix(name)
        else:
            parameters[name] = _parameter(base, name, types[name] if len(shape) == 2 else _VECTOR)
    return parameters


def held_as(info: TensorInfo, types: Dtypes) -> np.dtype[np.generic]:
    """The type in memory of a tensor that may have `types`."""
    return info.dtype if info.dtype in types else types[0]


def _parameter(base: Checkpoint, name: str, types: Dtypes) -> Array:
    """Mapped, or read a piece at a time, so that nothing is held twice."""
    info = base.infos[name]
    array = base.mapped(name) if info.dtype in types else None
    if array is not None:
        return array
    read = np.empty(info.shape, held_as(info, types))
    read_into(base, name, read)
    return read


def _answering_types(base: Checkpoint, config: SparkConfig) -> Mapping[str, Dtypes]:
    """Full name of a matrix -> the types that it may have."""
    if isinstance(base, QuantizedCheckpoint):
        return dict.fromkeys(base, _EXACT)
    kinds = {"float32": _EXACT, "bfloat16": (BFLOAT16,)}
    matrix, embedding = kinds[config.compute_type], kinds[config.embedding_init_type]
    return {name: embedding if is_embedding(name) else matrix for name in base}
