"""The shape of the model: `SparkConfig`, the `model` section of every preset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from spark13b.config.checked import Checked, Problem

ComputeType = Literal["float32", "float16", "bfloat16"]
AttentionBackend = Literal["auto", "plain", "blocked", "native", "ascend", "acctransformer"]


class SparkConfig(Checked):
    """Shape and number formats of a Spark model. Field names follow the original's YAML.

    `ffn_hidden_size` counts gate and up together (13B: 28672, each 14336 wide).
    """

    num_layers: int = Field(40, ge=1, le=1024, description="decoder layers")
    hidden_size: int = Field(5120, ge=8, description="width of the residual stream, C")
    num_heads: int = Field(40, ge=1, description="attention heads, H; the head size D is hidden_size / num_heads")
    ffn_hidden_size: int = Field(28672, ge=2, description="gate and up projections together, F")
    vocab_size: int = Field(60000, ge=2, description="rows of the embedding, V")
    seq_length: int = Field(32768, ge=1, description="context in tokens, T")
    sparse_local_size: int = Field(8192, ge=1, description="sliding window in tokens, the token itself included")
    layernorm_epsilon: float = Field(1e-5, gt=0)
    rope_theta: float = Field(1e6, gt=1, description="base of the rotary frequencies")
    compute_type: ComputeType = Field("float32", description="matrix products and the KV cache")
    param_init_type: ComputeType = Field("float32", description="stored weights, except embedding and norms")
    weight_bits: Literal[8, 4] | None = Field(
        None,
        description="on a CPU, to answer or for LoRA: of the weights that 'spark13b ckpt quantize' rounded; "
        "null: not rounded",
    )
    embedding_init_type: ComputeType = Field("float32", description="stored embedding")
    layernorm_compute_type: ComputeType = Field("float32", description="LayerNorm parameters and statistics")
    softmax_compute_type: ComputeType = Field("float32", description="attention softmax in the plain backends")
    attention_backend: AttentionBackend = Field("auto", description="auto chooses by device, length and availability")

    @property
    def head_size(self) -> int:
        """D, the width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def cache_slots(self) -> int:
        """Slots a full decode cache needs: min(context, window), however long the text gets."""
        return min(self.seq_length, self.sparse_local_size)

    def _problems(self) -> Iterator[Problem]:
        if self.hidden_size % self.num_heads:
            yield Problem(
                "num_heads",
                f"{self.num_heads} does not divide hidden_size {self.hidden_size}",
                "choose a divisor of hidden_size",
                ("hidden_size",),
            )
        elif self.head_size % 2:
            yield Problem(
                "num_heads",
                f"the head size hidden_size / num_heads is {self.head_size}; rotary embedding needs it even",
                "choose num_heads so that hidden_size / num_heads is even",
                ("hidden_size",),
            )
        if self.ffn_hidden_size % 2:
            yield Problem(
                "ffn_hidden_size",
                f"{self.ffn_hidden_size} is odd; it counts gate and up together",
                "choose an even number",
            )
