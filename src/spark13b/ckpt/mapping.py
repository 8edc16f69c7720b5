"""A model's parameters where their file lies: memory-mapped, quantised or not, which are read when they are first used.

Processes that use the same file share its pages, and the next start finds them in memory.
"""

from __future__ import annotations

from spark13b.ckpt.dtypes import BFLOAT16, FLOAT32, Array, to_float32
from spark13b.ckpt.quantized import QuantizedCheckpoint
from spark13b.ckpt.tensors import Checkpoint
from spark13b.config.model import SparkConfig
from spark13b.model.names import expected_shapes
from spark13b.native.matrix import Matrix


def mapped_parameters(base: Checkpoint, config: SparkConfig) -> dict[str, Array | Matrix]:
    """The parameters of a checkpoint whose names fit, in a complete checkpoint's order; they stay when it is closed.

    What the native library does not compute with as it lies in the file (float16, for example) is read and widened.
    """
    return {name: _parameter(base, name) for name in expected_shapes(config)}


def _parameter(base: Checkpoint, name: str) -> Array | Matrix:
    if isinstance(base, QuantizedCheckpoint) and name in base.choices:
        return base.matrix(name)
    array = base.mapped(name)
    if array is None:
        array = base.read(name)
    suits = (FLOAT32, BFLOAT16) if array.ndim == 2 else (FLOAT32,)
    return array if array.dtype in suits else to_float32(array)
