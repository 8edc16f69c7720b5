"""State dicts and comparisons that several tests use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

LAYERS, C, F, V = 2, 64, 256, 512  # the golden model's size


def torch_state(dtype: Any = None, seed: int = 0) -> dict[str, Any]:
    """A state dict as the original's torch model has it, random."""
    torch = pytest.importorskip("torch", reason="compared with torch where it is installed: pip install -e .[torch]")
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).to(dtype or torch.float32)

    state: dict[str, Any] = {"embedding.word_embeddings.weight": random(V, C)}
    for layer in range(LAYERS):
        prefix = f"transformer.layers.{layer}."
        for norm in ("layer_norm", "final_layer_norm"):
            state |= {f"{prefix}{norm}.weight": random(C), f"{prefix}{norm}.bias": random(C)}
        for linear, rows, columns in (
            ("attention.q_k_v_proj", 3 * C, C),
            ("attention.out_proj", C, C),
            ("mlp.fc1", F, C),
            ("mlp.fc2", C, F // 2),
        ):
            state |= {f"{prefix}{linear}.weight": random(rows, columns), f"{prefix}{linear}.bias": random(rows)}
            state[f"{prefix}{linear}._extra_state"] = None
    return state | {"transformer.layernorm.weight": random(C), "transformer.layernorm.bias": random(C)}


def same_bytes(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two arrays agree in format, shape and every bit."""
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
