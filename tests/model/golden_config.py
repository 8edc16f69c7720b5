"""The shape of the model in tests/golden/reference.npz (shared/SPEC.md, section 13)."""

from __future__ import annotations

from typing import Any

from spark13b.config.model import SparkConfig


def golden_config(**changes: Any) -> SparkConfig:
    """The golden model's config with a context of 64 and the window 32, or `changes`."""
    shape: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 64,
        "num_heads": 4,
        "ffn_hidden_size": 256,
        "vocab_size": 512,
        "seq_length": 64,
        "sparse_local_size": 32,
    }
    return SparkConfig(**(shape | changes))
