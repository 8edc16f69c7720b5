"""The fused kernels of Ascend: `ops.flash_attention_score` (910B) and the acctransformer package (910A)."""

from __future__ import annotations

import inspect
import math
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from spark13b.config.model import SparkConfig
from spark13b.model.attention.choose import BLOCK_TOKENS

_BAND = 4  # sparse_mode: from pre_tokens before the query to next_tokens after it
_COMPRESSED = 2048  # side of the mask that the band mode asks for, whatever the length


class AscendAttention(nn.Cell):
    """`ops.flash_attention_score` in band mode: query i sees keys i - pre_tokens to i + next_tokens.

    The contract is that of MindSpore 2.9: layout BNSD, float16 or bfloat16, a (2048, 2048) upper triangle of 1
    (forbidden) as mask.
    """

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        self.pre_tokens = config.sparse_local_size - 1
        self.scale = 1.0 / math.sqrt(config.head_size)
        self.triangle = Tensor(np.triu(np.ones((_COMPRESSED, _COMPRESSED), np.uint8), k=1))

    def mask(self, zero: Any, batch: int, heads: int, tokens: int) -> Any:
        """The kernel's own compressed mask."""
        return self.triangle

    def construct(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        """q, k, v (B, H, T, D) -> (B, H, T, D)"""
        return ops.flash_attention_score(
            q,
            k,
            v,
            q.shape[1],
            attn_mask=mask,
            scalar_value=self.scale,
            pre_tokens=self.pre_tokens,
            next_tokens=0,
            input_layout="BNSD",
            sparse_mode=_BAND,
        )


class AccTransformerAttention(nn.Cell):
    """acctransformer's FlashAttention, which works on whole blocks of 128 tokens.

    Query block b sees blocks b - prev_block_num to b, its own up to the query: the window of a block's last query is
    exact, that of its first is up to 127 tokens shorter. This is how the original runs and trained on the 910A. The
    kernel repeats a mask of one block, (1, 128, 128), 1 where attention is forbidden. T is padded to whole blocks.
    """

    def __init__(self, config: SparkConfig) -> None:
        super().__init__()
        from acctransformer.flash_attention.nn.layer.flash_attention import FlashAttention

        options: dict[str, Any] = {"dp": 1, "mp": 1, "high_precision": True, "have_attention_mask_batch": False}
        known = inspect.signature(FlashAttention.__init__).parameters  # releases differ in these
        arguments: dict[str, Any] = {
            "head_dim": config.head_size,
            "head_num": config.num_heads,
            "dropout_rate": 0.0,
            "prev_block_num": config.sparse_local_size // BLOCK_TOKENS - 1,
            "next_block_num": 0,
            **options,
        }
        self.kernel = FlashAttention(**{name: value for name, value in arguments.items() if name in known})
        self.triangle = Tensor(np.triu(np.ones((1, BLOCK_TOKENS, BLOCK_TOKENS), np.float16), k=1))

    def mask(self, zero: Any, batch: int, heads: int, tokens: int) -> Any:
        """The mask of one block, which the kernel repeats."""
        return self.triangle

    def construct(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        """q, k, v (B, H, T, D) float16 -> (B, H, T, D); the kernel scales by 1/sqrt(D) itself."""
        tokens = q.shape[2]
        extra = -tokens % BLOCK_TOKENS
        if extra:
            zeros = ops.zeros((q.shape[0], q.shape[1], extra, q.shape[3]), mindspore.float16)
            q, k, v = ops.concat((q, zeros), 2), ops.concat((k, zeros), 2), ops.concat((v, zeros), 2)
        out = self.kernel(q, k, v, mask)
        return out[:, :, :tokens]
