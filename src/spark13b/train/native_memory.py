"""What a training step of the native library takes beside weights, gradients and optimizer; docs/memory.md.

Its own numbers are the library's (native/training_memory.cpp), which lays out a step without making it.
"""

from __future__ import annotations

from spark13b.config.preset import Preset
from spark13b.config.sections import LINEAR_NAMES
from spark13b.model.native_choice import TYPES, adapted_bits, choose_native
from spark13b.native.library import Library, thread_count
from spark13b.native.training import logits_at_once, packed_bytes, training_bytes
from spark13b.train.rounded import RoundedBase

# Python, MindSpore and its graph of a step in which one operator computes all layers; measured, as those that follow.
_PROCESS = 500 * 2**20
_LAYER = 3 * 2**20
# What MindSpore's compiler takes for sums of P gradients, where batches are accumulated, and for their updates, where
# processes share the rows: so much times P, and times P squared.
_SUMS = 1690 * 2**10, 10 * 2**10
_UPDATES = 7 * 2**20, 26 * 2**10


def native_trainer(preset: Preset, base: RoundedBase | None = None) -> tuple[Library | None, str]:
    """The library that will train `preset` here, or None where MindSpore's operators will; and what will, and why.

    `base`: a quantised one.
    """
    return choose_native(
        preset.model,
        preset.machine.device,
        model_parallel=preset.parallel.model_parallel,
        lora=preset.lora if preset.task == "lora" else None,
        rounded=base is not None,
    )


def native_step(library: Library, preset: Preset, tokens: int, recompute: bool, base: RoundedBase | None = None) -> int:
    """Bytes of a step on rows of `tokens` tokens, all at once: what it lays out, packed products, attention's sums.

    Of a quantised `base` a layer is unpacked at once, and the embedding, into the same room.
    """
    model, batch = preset.model, preset.train.batch_size
    linear, embedding = TYPES.index(model.param_init_type), TYPES.index(model.embedding_init_type)
    biases, types = linear, (embedding, *[linear] * len(LINEAR_NAMES) * model.num_layers)
    if base is not None:
        biases, types = 0, base.types
    adapters = (0, 0, 0)
    if preset.task == "lora":
        adapters = (preset.lora.rank, adapted_bits(preset.lora), int(preset.lora.dropout > 0))
    width = model.ffn_hidden_size // 2
    sizes = (batch, tokens, model.num_layers, model.hidden_size, model.num_heads, width, model.vocab_size)
    laid_out = training_bytes(library, [*sizes, TYPES.index(model.compute_type), biases, recompute, *adapters], types)
    # keys and values in bfloat16, K once more across, and the float32 sums of their gradients
    attention = thread_count() * tokens * model.head_size * (3 * 2 + 2 * 4)
    return laid_out + _packed(library, preset, batch * tokens) + attention


def native_process(preset: Preset, trained: int) -> int:
    """Bytes of the process: Python, MindSpore and its compiler's memory for a run that trains so many parameters."""
    graphs = [_SUMS] * (preset.train.accumulation_steps > 1) + [_UPDATES] * (preset.parallel.data_parallel > 1)
    compiled = sum(one * trained + square * trained**2 for one, square in graphs)
    return _PROCESS + _LAYER * preset.model.num_layers + compiled


def _packed(library: Library, preset: Preset, rows: int) -> int:
    """Bytes of the left sides that are packed at once: of the logits' gradients or the MLP's, whichever are more.

    Each is packed for one product; where weights are trained once more, across, for theirs, and so is the MLP's output.
    """
    model = preset.model
    multiplier = library.multiplier(model.compute_type)
    if multiplier == "oneDNN":
        return 0
    number = 2 if model.compute_type == "bfloat16" else 4 if multiplier == "vectors" else 6  # AMX: in three parts
    logits, wide, narrow = (
        min(packed_bytes(library), number * numbers)
        for numbers in (
            min(logits_at_once(library), rows * model.vocab_size),
            rows * model.ffn_hidden_size // 2,
            rows * model.hidden_size,
        )
    )
    if preset.task == "lora":  # with dropout q, k and v have inputs of their own beside that of the weights
        return max(logits, wide, 4 * narrow if preset.lora.dropout else 0)
    return max(2 * logits, 3 * wide + narrow)
