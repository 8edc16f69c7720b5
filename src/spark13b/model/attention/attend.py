"""The seam: one call for attention over whole sequences; device, availability and shape decide what computes it."""

from __future__ import annotations

from typing import Any

from mindspore import nn

from spark13b.config.model import SparkConfig
from spark13b.model.attention.blocked import BlockedAttention
from spark13b.model.attention.choose import choose_backend, plain_fits
from spark13b.model.attention.plain import PlainAttention
from spark13b.model.device import device
from spark13b.native.library import find_library


class Attend(nn.Cell):
    """Sliding-window attention over (B, H, T, D), the same numbers from every backend; shared by all layers.

    A graph is compiled for one shape, so the choice by shape costs nothing when it runs. `choose_backend` tells it.
    """

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        # by shape only where plain and blocked are the candidates, i.e. with auto on a device without fused attention
        choice = choose_backend(config, device(), batch=1, tokens=2)
        self.by_shape = config.attention_backend == "auto" and choice.backend in ("plain", "blocked")
        if self.by_shape:
            self.plain, self.blocked = PlainAttention(config), BlockedAttention(config)
        else:
            self.backend = make_backend(choice.backend, config)

    def mask(self, zero: Any, batch: int, heads: int, tokens: int) -> Any:
        """What the backend computes once for all layers; `zero` as in `band_bias`."""
        if self.by_shape:
            if plain_fits(batch * heads, tokens):
                return self.plain.mask(zero, batch, heads, tokens)
            return self.blocked.mask(zero, batch, heads, tokens)
        return self.backend.mask(zero, batch, heads, tokens)

    def construct(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        """q, k, v (B, H, T, D), rotated -> (B, H, T, D)"""
        if self.by_shape:
            if plain_fits(q.shape[0] * q.shape[1], q.shape[2]):
                return self.plain(q, k, v, mask)
            return self.blocked(q, k, v, mask)
        return self.backend(q, k, v, mask)


def make_backend(name: str, config: SparkConfig) -> nn.Cell:
    """The backend of that name: a cell with `mask(zero, B, H, T)` and `construct(q, k, v, mask)`."""
    if name == "plain":
        return PlainAttention(config)
    if name == "blocked":
        return BlockedAttention(config)
    if name == "native":
        from spark13b.model.attention.native import NativeAttention

        library = find_library().library
        assert library is not None, "choose_backend has looked"
        return NativeAttention(config, library)
    from spark13b.model.attention import fused

    return fused.AscendAttention(config) if name == "ascend" else fused.AccTransformerAttention(config)
