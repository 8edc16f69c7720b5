"""Whether the native library trains a model or answers with it, and why. Plain Python: MindSpore is not loaded."""

from __future__ import annotations

from spark13b.config.model import SparkConfig
from spark13b.config.sections import LINEAR_NAMES, LoraConfig
from spark13b.model.device import Device
from spark13b.native.library import Library, find_library

TYPES = ("float32", "bfloat16")  # by the library's numbers


def choose_native(
    config: SparkConfig, device: Device, *, model_parallel: int, dropout: float, lora: LoraConfig | None
) -> tuple[Library | None, str]:
    """The library that computes losses and gradients of such a model on `device`, or None; and what computes, and why.

    `lora`: of the adapters that are trained, None without. Raises InputError as `find_library` does.
    """
    found = find_library()
    reason = _why_not(config, device, model_parallel, dropout, lora) or found.reason
    if found.library is None or reason:
        return None, f"MindSpore's operators: {reason}"
    multiplier = found.library.multiplier(config.compute_type)
    if multiplier is None:
        return None, "MindSpore's operators: oneDNN, which multiplies bfloat16 without AMX, is not found"
    return found.library, describe_library(found.library, config.compute_type)


def choose_answering(
    config: SparkConfig, device: Device, *, model_parallel: int, adapters: bool
) -> tuple[Library | None, str]:
    """The library that answers with such a model on `device`, or None; and what computes, and why.

    `adapters`: whether they are computed beside the weights. Raises InputError as `find_library` does.
    """
    found = find_library()
    reason = answering_problem(config, device, model_parallel, adapters) or found.reason
    if found.library is None or reason:
        return None, f"MindSpore's operators: {reason}"
    return found.library, describe_library(found.library, config.compute_type)


def answering_problem(config: SparkConfig, device: Device, model_parallel: int, adapters: bool) -> str | None:
    """Why no library could answer with such a model, or None."""
    types = {config.compute_type, config.embedding_init_type, config.layernorm_compute_type}
    if device != "cpu":
        return "the device is no CPU"
    if not types <= set(TYPES):
        return f"the native library computes float32 and bfloat16, the model is {' and '.join(sorted(types))}"
    if config.layernorm_compute_type != "float32":
        return "the native library's norms are float32"
    if model_parallel > 1:
        return "several processes share the model"
    return "adapters are computed beside the weights" if adapters else None


def describe_library(library: Library, compute_type: str) -> str:
    """The library, its instructions and what multiplies many rows of that type, in a few words."""
    multiplier = library.multiplier(compute_type)
    products = f", {compute_type} products by {multiplier}" if multiplier else ""
    return f"the native library ({library.describe()}{products})"


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
