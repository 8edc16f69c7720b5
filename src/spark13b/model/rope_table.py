"""The angles of rotary position embedding (shared/SPEC.md, section 1), without MindSpore."""

from __future__ import annotations

import numpy as np

from spark13b.config.model import SparkConfig


def rope_table(config: SparkConfig) -> tuple[np.ndarray, np.ndarray]:
    """cos and signed sin of every position, each (T, D) float64, T = `seq_length`.

    The angles are taken in float64, as the original does: in float32 they are off by 2e-3 rad at position 32768. The
    first half of sin carries the minus of the rotation, so that `Rotate` needs no negation.
    """
    size = config.head_size
    inverse = config.rope_theta ** (-2.0 * np.arange(size // 2) / size)
    angles = np.arange(config.seq_length)[:, None] * inverse
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate((cos, cos), axis=-1), np.concatenate((-sin, sin), axis=-1)


def native_rope_table(config: SparkConfig) -> tuple[np.ndarray, np.ndarray]:
    """The same as the native library reads them, float32."""
    cos, sin = (table.astype(np.float32) for table in rope_table(config))
    return cos, sin
