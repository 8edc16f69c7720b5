"""The model core: one decoder-only transformer for training, prefill and decode.

`SparkConfig` is light; `SparkForCausalLM` loads MindSpore when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spark13b.config.model import SparkConfig

if TYPE_CHECKING:
    from spark13b.model.causal_lm import SparkForCausalLM

__all__ = ["SparkConfig", "SparkForCausalLM"]


def __getattr__(name: str) -> Any:
    if name == "SparkForCausalLM":
        from spark13b.model.causal_lm import SparkForCausalLM

        return SparkForCausalLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
