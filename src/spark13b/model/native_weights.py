"""A model's parameters as the native library reads them where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from spark13b.config.model import SparkConfig
from spark13b.model.rope_table import native_rope_table
from spark13b.native.matrix import Matrix
from spark13b.native.weights import Weights


def native_weights(
    config: SparkConfig,
    parameters: Iterable[np.ndarray | Matrix],
    adapters: Sequence[tuple[np.ndarray, np.ndarray] | None] = (),
) -> Weights:
    """`parameters` in a complete checkpoint's order, vectors float32; `adapters`: see `Weights`."""
    cos, sin = native_rope_table(config)
    return Weights(list(parameters), cos, sin, config.num_heads, config.layernorm_epsilon, adapters)
