"""A model where its file lies: memory-mapped weights, quantised or not, which are read when they are first used.

Processes that use the same file share its pages, and the next start finds them in memory.
"""

from __future__ import annotations

import numpy as np

from spark13b.ckpt.dtypes import to_float32
from spark13b.ckpt.quantized import QuantizedCheckpoint
from spark13b.ckpt.tensors import Checkpoint
from spark13b.config.model import SparkConfig
from spark13b.infer.native_model import NativeModel
from spark13b.model.names import expected_shapes
from spark13b.native.library import Library
from spark13b.native.matrix import BFLOAT16, Matrix


def map_native(base: Checkpoint, config: SparkConfig, library: Library) -> NativeModel:
    """The model of a checkpoint whose names fit. Its weights stay when `base` is closed.

    What the library does not compute with as it lies in the file (float16, for example) is read and widened.
    """
    return NativeModel(config, {name: _parameter(base, name) for name in expected_shapes(config)}, library)


def _parameter(base: Checkpoint, name: str) -> np.ndarray | Matrix:
    if isinstance(base, QuantizedCheckpoint) and name in base.choices:
        return base.matrix(name)
    array = base.mapped(name)
    if array is None:
        array = base.read(name)
    suits = (np.float32, BFLOAT16) if array.ndim == 2 else (np.float32,)
    return array if array.dtype in suits else to_float32(array)
