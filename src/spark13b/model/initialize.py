"""Random weights to train from: normal, with deviations that follow the width."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from spark13b.config.model import SparkConfig


def initial_value(name: str, shape: tuple[int, ...], config: SparkConfig, seed: int) -> np.ndarray:
    """The float32 start of one parameter. It depends on seed and name alone, not on order or on other layers.

    Norms begin as the identity and biases as zero; the embedding with deviation 1 / sqrt(C), so that first logits
    have variance 1; matrices with sqrt(2 / (5 C)) (Nguyen and Salazar 2019), and those that add to the residual stream
    2 L times, `out_proj` and `fc2`, with that over sqrt(2 L) (GPT-2, Radford et al. 2019, section 2.3). With the usual
    0.02 a model 128 wide begins to learn some ten steps later. Adapters: A uniform within 1 / sqrt(inputs), B zero (the
    original's, and Hu et al. 2021).
    """
    if name.endswith(".gamma"):
        return np.ones(shape, np.float32)
    if name.endswith((".beta", ".bias", "mindpet_delta_lora_b")):
        return np.zeros(shape, np.float32)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    if name.endswith("mindpet_delta_lora_a"):
        bound = 1.0 / math.sqrt(shape[1])
        return random.uniform(-bound, bound, shape).astype(np.float32)
    deviation = math.sqrt(0.4 / config.hidden_size)
    if name.endswith("embedding_table"):
        deviation = 1.0 / math.sqrt(config.hidden_size)
    if name.endswith(("out_proj.weight", "fc2.weight")):
        deviation /= math.sqrt(2 * config.num_layers)
    return random.standard_normal(shape, np.float32) * np.float32(deviation)
