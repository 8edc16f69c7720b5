"""Whether the caches of all seats fit beside the weights, told before anything is loaded."""

from __future__ import annotations

from spark13b.config import Preset
from spark13b.errors import InputError
from spark13b.model.names import expected_shapes, is_norm

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_GB = 2**30
_WORK = 3.0  # GiB for what a prompt's part and a step compute, and for the graphs themselves


def seat_bytes(preset: Preset, context: int | None = None) -> int:
    """The cache of one seat of one process, on an NPU, where all seats have room for the whole `context`."""
    model = preset.model
    slots = min(context or model.seq_length, model.cache_slots)
    numbers = 2 * model.num_layers * slots * model.hidden_size
    return numbers * _BYTES[model.compute_type] // preset.parallel.model_parallel


def weight_bytes(preset: Preset) -> int:
    """The weights of one process as they are held to answer."""
    model, total = preset.model, 0
    for name, shape in expected_shapes(model).items():
        size = 1
        for length in shape:
            size *= length
        if is_norm(name):
            total += size * _BYTES[model.layernorm_compute_type]
        elif "embedding" in name:
            total += size * _BYTES[model.embedding_init_type] // preset.parallel.model_parallel
        else:
            total += size * _BYTES[model.compute_type] // preset.parallel.model_parallel
    return total


def check_room(preset: Preset, seats: int, context: int | None = None) -> None:
    """Raise InputError when the seats do not fit in a device's `machine.max_device_memory_gb`; no limit, no check."""
    limit = preset.machine.max_device_memory_gb
    if limit is None:
        return
    one, weights = seat_bytes(preset, context) / _GB, weight_bytes(preset) / _GB
    places = seats + 1 if seats > 1 else 1  # beside the seats there is the one where prompts are read
    if weights + places * one + _WORK <= limit:
        return
    most = int((limit - weights - _WORK) / one) - 1
    fix = "give --context a shorter one" + (f", or --seats at most {most}" if most > 1 else "")
    raise InputError(
        f"{places} caches of {one:.1f} GiB do not fit beside {weights:.1f} GiB of weights in {limit:g} GB",
        where="machine.max_device_memory_gb",
        fix=fix,
    )
