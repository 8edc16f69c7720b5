"""Random weights to train from: normal with deviation 0.02, the ways back into the residual stream scaled down."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from spark13b.config.model import SparkConfig

_DEVIATION = 0.02


def initial_value(name: str, shape: tuple[int, ...], config: SparkConfig, seed: int) -> np.ndarray:
    """The float32 start of one parameter. It depends on seed and name alone, not on order or on other layers.

    Norms begin as the identity and biases as zero; `out_proj` and `fc2`, which add to the residual stream 2 L times,
    begin with 0.02 / sqrt(2 L) (GPT-2, Radford et al. 2019, section 2.3).
    """
    if name.endswith(".gamma"):
        return np.ones(shape, np.float32)
    if name.endswith((".beta", ".bias")):
        return np.zeros(shape, np.float32)
    deviation = _DEVIATION
    if name.endswith(("out_proj.weight", "fc2.weight")):
        deviation /= math.sqrt(2 * config.num_layers)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    return random.standard_normal(shape, np.float32) * np.float32(deviation)
