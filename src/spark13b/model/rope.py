"""Rotary position embedding, half-rotation form, absolute positions from 0 (shared/SPEC.md, section 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import ops

from spark13b.config.model import SparkConfig


def rope_table(config: SparkConfig) -> tuple[np.ndarray, np.ndarray]:
    """cos and signed sin of every position, each (T, D) float64, T = `seq_length`.

    The angles are taken in float64, as the original does: in float32 they are off by 2e-3 rad at position 32768. The
    first half of sin carries the minus of the rotation, so that `rotate` needs no negation.
    """
    size = config.head_size
    inverse = config.rope_theta ** (-2.0 * np.arange(size // 2) / size)
    angles = np.arange(config.seq_length)[:, None] * inverse
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate((cos, cos), axis=-1), np.concatenate((-sin, sin), axis=-1)


def rotate(z: Any, cos: Any, sin: Any) -> Any:
    """Rotate the heads `z` (..., D) by `cos` and `sin`, whose shape broadcasts to that of z."""
    half = z.shape[-1] // 2
    swapped = ops.concat((z[..., half:], z[..., :half]), -1)
    return z * cos + swapped * sin
