"""Whether the native library computes a training run's losses and gradients. Plain Python: MindSpore is not loaded."""

from __future__ import annotations

from spark13b.config.model import SparkConfig
from spark13b.config.sections import LINEAR_NAMES, LoraConfig
from spark13b.model.device import Device
from spark13b.native.library import Library, find_library

TYPES = ("float32", "bfloat16")  # by the library's numbers


def choose_native(
    config: SparkConfig, device: Device, *, model_parallel: int, dropout: float, lora: LoraConfig | None
) -> tuple[Library | None, str]:
    """The library that computes losses and gradients of such a model on `device`, or None; and why, in a sentence.

    `lora`: of the adapters that are trained, None without.
    """
    found = find_library()
    reason = _why_not(config, device, model_parallel, dropout, lora) or found.reason
    if found.library is None or reason:
        return None, f"training by MindSpore's operators: {reason}"
    multiplier = found.library.multiplier(config.compute_type)
    if multiplier is None:
        return None, "training by MindSpore's operators: oneDNN, which multiplies bfloat16 without AMX, is not found"
    described = f"{found.library.describe()}, {config.compute_type} products by {multiplier}"
    return found.library, f"training by the native library ({described})"


def adapted_bits(lora: LoraConfig) -> int:
    """The linear layers of a layer that have an adapter, a bit each, as the library is told."""
    return sum(lora.adapts(name) << place for place, name in enumerate(LINEAR_NAMES))


def _why_not(
    config: SparkConfig, device: Device, model_parallel: int, dropout: float, lora: LoraConfig | None
) -> str | None:
    kept = {config.param_init_type, config.embedding_init_type}
    inner = {config.layernorm_compute_type, config.softmax_compute_type}
    if device != "cpu":
        return "the device is no CPU"
    if lora is None and kept != {"float32"}:
        return f"the native library trains float32 weights, these are {' and '.join(sorted(kept))}"
    if not kept <= set(TYPES):
        return f"the native library reads {' or '.join(TYPES)} weights, these are {' and '.join(sorted(kept))}"
    if inner != {"float32"}:
        return f"the native library's norms and softmax are float32, these are {' and '.join(sorted(inner))}"
    if config.compute_type not in TYPES:
        return f"the native library computes in {' or '.join(TYPES)}, model.compute_type is {config.compute_type}"
    if model_parallel > 1:
        return "several processes share the model"
    if dropout > 0:
        return "the native library has no dropout (train.dropout)"
    if lora is not None and lora.dropout > 0:
        return "the native library has no dropout of adapters' inputs (lora.dropout)"
    if config.attention_backend not in ("auto", "native"):
        return f"model.attention_backend is {config.attention_backend}"
    return None
