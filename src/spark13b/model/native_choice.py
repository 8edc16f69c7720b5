"""Whether the native library trains a model or answers with it, and why. Plain Python: MindSpore is not loaded."""

from __future__ import annotations

from pathlib import Path

from spark13b.config.model import SparkConfig
from spark13b.config.sections import LINEAR_NAMES, LoraConfig
from spark13b.errors import InputError
from spark13b.model.device import Device
from spark13b.native.library import Found, Library, find_library

TYPES = ("float32", "bfloat16")  # by the library's numbers
_MAPPED = ", quantised weights where their file is mapped into memory"


def choose_native(
    config: SparkConfig,
    device: Device,
    *,
    model_parallel: int,
    lora: LoraConfig | None,
    rounded: bool = False,
) -> tuple[Library | None, str]:
    """The library that computes losses and gradients of such a model on `device`, or None; and what computes, and why.

    `lora`: of the adapters that are trained, None without. `rounded`: the weights are those of a quantised file. Raises
    InputError as `find_library` does.
    """
    library, reason, _ = _choose(config, device, model_parallel, lora, rounded)
    if library is None:
        return None, f"MindSpore's operators: {reason}"
    return library, describe_library(library, config.compute_type) + (_MAPPED if rounded else "")


def need_native(
    config: SparkConfig, device: Device, base: Path | None, *, model_parallel: int, lora: LoraConfig
) -> None:
    """Raise InputError where adapters cannot be trained beside a quantised base; `base`: its file, where one is named.

    MindSpore's operators have float weights alone, and those of a large model would not fit.
    """
    library, reason, mend = _choose(config, device, model_parallel, lora, rounded=True)
    if library is None:
        name = base or "BASE"
        raise InputError(
            f"only the native library trains adapters beside a quantised base, and it cannot here: {reason}",
            where=base or "model.weight_bits",
            fix=f"{mend}; or train beside float weights: "
            f"'spark13b ckpt convert {name} FLOAT' writes what these stand for",
        )


def choose_answering(
    config: SparkConfig, device: Device, *, model_parallel: int, rounded: bool = False
) -> tuple[Library | None, str]:
    """The library that answers with such a model on `device`, or None; and what computes, and why.

    `rounded`: the weights are those of a quantised file. Raises InputError as `find_library` does.
    """
    reason = answering_problem(config, device, model_parallel)
    found = find_library() if reason is None else Found(None, reason)
    if found.library is None:
        floats = f"; quantised weights become {config.compute_type}" if rounded else ""
        return None, f"MindSpore's operators: {reason or _missing(found)}{floats}"
    return found.library, describe_library(found.library, config.compute_type) + (_MAPPED if rounded else "")


def answering_problem(config: SparkConfig, device: Device, model_parallel: int) -> str | None:
    """Why no library could answer with such a model, or None."""
    types = {config.compute_type, config.embedding_init_type, config.layernorm_compute_type}
    if device != "cpu":
        return "the device is no CPU"
    if not types <= set(TYPES):
        return f"the native library computes float32 and bfloat16, the model is {' and '.join(sorted(types))}"
    if config.layernorm_compute_type != "float32":
        return "the native library's norms are float32"
    return "several processes share the model" if model_parallel > 1 else None


def describe_library(library: Library, compute_type: str) -> str:
    """The library, its instructions and what multiplies many rows of that type, in a few words."""
    multiplier = library.multiplier(compute_type)
    products = f", {compute_type} products by {multiplier}" if multiplier else ""
    return f"the native library ({library.describe()}{products})"


def adapted_bits(lora: LoraConfig) -> int:
    """The linear layers of a layer that have an adapter, a bit each, as the library is told."""
    return sum(lora.adapts(name) << place for place, name in enumerate(LINEAR_NAMES))


def _choose(
    config: SparkConfig, device: Device, model_parallel: int, lora: LoraConfig | None, rounded: bool
) -> tuple[Library | None, str, str]:
    """The library or, where it is None, why, and how to mend it."""
    found = find_library()
    obstacle = _obstacle(config, device, model_parallel, lora, rounded)
    if obstacle is not None:
        return None, *obstacle
    if found.library is None:
        return None, _missing(found), "run 'spark13b native build', without SPARK13B_NATIVE=0"
    if found.library.multiplier(config.compute_type) is None:
        return None, "oneDNN, which multiplies bfloat16 without AMX, is not found", "set model.compute_type to float32"
    return found.library, "", ""


def _missing(found: Found) -> str:
    return f"no native library ({found.reason})"


def _obstacle(
    config: SparkConfig, device: Device, model_parallel: int, lora: LoraConfig | None, rounded: bool
) -> tuple[str, str] | None:
    """Why the library does not compute such a run, and how to mend it; None where it does."""
    kept = set() if rounded else {config.param_init_type, config.embedding_init_type}
    inner = {config.layernorm_compute_type, config.softmax_compute_type}
    float32 = "set {} to float32".format
    if device != "cpu":
        return "the device is no CPU", "choose a preset for a CPU"
    if lora is None and not kept <= {"float32"}:
        reason = f"the native library trains float32 weights, these are {' and '.join(sorted(kept))}"
        return reason, float32("model.param_init_type and embedding_init_type")
    if not kept <= set(TYPES):
        reason = f"the native library reads {' or '.join(TYPES)} weights, these are {' and '.join(sorted(kept))}"
        return reason, float32("model.param_init_type and embedding_init_type")
    if inner != {"float32"}:
        reason = f"the native library's norms and softmax are float32, these are {' and '.join(sorted(inner))}"
        return reason, float32("model.layernorm_compute_type and softmax_compute_type")
    if config.compute_type not in TYPES:
        reason = f"the native library computes in {' or '.join(TYPES)}, model.compute_type is {config.compute_type}"
        return reason, "set it to bfloat16"
    if model_parallel > 1:
        return "several processes share the model", "set parallel.model_parallel to 1"
    if config.attention_backend not in ("auto", "native"):
        return f"model.attention_backend is {config.attention_backend}", "set it to auto"
    return None
