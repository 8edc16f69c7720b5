"""Which attention backend computes a shape, and why. Plain Python: nothing here touches a tensor."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from spark13b.config.model import SparkConfig
from spark13b.errors import InputError
from spark13b.model.device import Device
from spark13b.native.library import find_library

BLOCK_TOKENS = 128  # acctransformer works on blocks of 128 tokens
PLAIN_SCORES = 16 * 2**20  # the plain backend keeps all scores of a layer: at most so many numbers (64 MB of float32)
BLOCKED_SCORES = 48 * 2**20  # those that the blocked backend holds at once; fewer, larger blocks compile much faster


@dataclass(frozen=True)
class Choice:
    """The backend for one shape and one sentence that says why."""

    backend: str
    reason: str


def choose_backend(config: SparkConfig, device: Device, batch: int, tokens: int) -> Choice:
    """The backend for (batch, tokens) on `device`: the forced one, or by device, availability and size.

    Raises InputError when the forced one cannot run here.
    """
    wanted = config.attention_backend
    if wanted != "auto":
        problem = _problem(wanted, config, device)
        if problem:
            raise InputError(
                f"attention_backend '{wanted}' cannot be used: {problem}",
                where="model.attention_backend",
                fix="set it to auto, plain or blocked",
            )
        return Choice(wanted, "set by model.attention_backend")
    for backend in ("ascend", "acctransformer"):
        if not _problem(backend, config, device):
            return Choice(backend, "the fused attention of this device")
    heads = batch * config.num_heads
    if plain_fits(heads, tokens):
        return Choice("plain", f"the {heads} x {tokens} x {tokens} scores fit in {PLAIN_SCORES * 4 >> 20} MB")
    return Choice("blocked", f"{tokens} tokens go block by block, in memory linear in the length")


def plain_fits(heads: int, tokens: int) -> bool:
    """Whether the scores of a layer, heads = B*H, are few enough to be held at once."""
    return heads * tokens * tokens <= PLAIN_SCORES


def block_size(heads: int, tokens: int, window: int) -> int:
    """Queries the blocked backend takes at once: a power of two, 16 to 1024, that keeps its scores in bounds."""
    size = 1024
    while size > 16 and (size >= 2 * tokens or heads * size * (min(window, tokens) + size) > BLOCKED_SCORES):
        size //= 2
    return size


def _problem(backend: str, config: SparkConfig, device: Device) -> str | None:
    """Why `backend` cannot run this config on `device`, or None."""
    if backend in ("plain", "blocked"):
        return None
    if backend == "native":
        return _native_problem(config, device)
    if device != "ascend":
        return "it needs an Ascend NPU, and MindSpore sees none"
    if config.compute_type == "float32":
        return "the fused kernels compute in float16 or bfloat16, model.compute_type is float32"
    chip = ascend_chip()
    if backend == "ascend":
        if chip == "910A":
            return "ops.flash_attention_score does not exist on the Ascend 910A"
        if config.head_size % 16:
            return f"the head size {config.head_size} is not a multiple of 16"
        return None
    if chip != "910A":
        return "acctransformer is for the Ascend 910A"
    if importlib.util.find_spec("acctransformer") is None:
        return "the package acctransformer is not installed"
    if config.compute_type != "float16":
        return "acctransformer computes in float16"
    if config.sparse_local_size % BLOCK_TOKENS:
        return f"the window {config.sparse_local_size} is not a multiple of {BLOCK_TOKENS}"
    return None


def _native_problem(config: SparkConfig, device: Device) -> str | None:
    """Why the native library cannot compute attention of this config on `device`, or None."""
    if device != "cpu":
        return "it is for CPUs"
    if config.softmax_compute_type != "float32":
        return f"its softmax is float32, model.softmax_compute_type is {config.softmax_compute_type}"
    found = find_library()
    return f"there is no native library: {found.reason}" if found.library is None else None


def for_training(config: SparkConfig, device: Device) -> SparkConfig:
    """`config` with the native attention where it computes here and another one is not wanted.

    For graphs that stay on this machine: one that is exported must not need the library.
    """
    if config.attention_backend != "auto" or _native_problem(config, device):
        return config
    return config.model_copy(update={"attention_backend": "native"})


def ascend_chip() -> str:
    """`910A` or `910B`, by the name that MindSpore gives the device (Ascend910 and Ascend910B3, for example)."""
    import mindspore

    name = str(mindspore.hal.get_device_name(0, "Ascend"))
    return "910B" if "910B" in name or "910_93" in name else "910A"
