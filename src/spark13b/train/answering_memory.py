"""What answering needs of a device's memory, as memory.py says what training does, with the same letters."""

from __future__ import annotations

from spark13b.config.preset import Preset
from spark13b.model.native_choice import choose_answering
from spark13b.train.answering_files import UNKNOWN, AnsweringFiles
from spark13b.train.memory import ASCEND_RESERVE, Memory
from spark13b.train.parts import Part, part_of, stored_adapters, stored_parameters
from spark13b.train.rounded import RoundedBase

PART_TOKENS = 512  # of a prompt are read at once, `chunk` of infer/engine.py
_CPU_PROCESS = 600 * 2**20  # Python, MindSpore's libraries and its compiler's memory for the graphs, measured
_CPU_GRAPH = 30 * 2**20  # and that of prefill and decode, a layer
_NATIVE_PROCESS = 200 * 2**20  # Python, NumPy and the native library, without MindSpore


def answering_memory(
    preset: Preset, seats: int = 1, context: int | None = None, files: AnsweringFiles = UNKNOWN
) -> Memory:
    """What answering `seats` prompts at once needs on each device, of what will compute here.

    `context`: the most tokens of a prompt with its answer. The native library keeps weights as `files` tells;
    where they tell none and the preset has `weight_bits`, as `ckpt quantize` would make them of its model. Other
    weights are kept in the compute type.

    Several answers have a cache each, beside the one where prompts are read; on a CPU caches grow with the texts, and
    this is their largest size, without those of shorter texts, which stay. Raises InputError as `choose_answering`
    does.
    """
    model = preset.model.model_copy(update={"param_init_type": preset.model.compute_type})
    preset = preset.model_copy(update={"task": "infer", "model": model})
    shared = preset.parallel.model_parallel
    native = choose_answering(model, preset.machine.device, model_parallel=shared)[0] is not None
    context = min(context or model.seq_length, model.seq_length)
    slots, places = min(context, model.cache_slots), seats + 1 if seats > 1 else 1
    part = part_of(preset, min(PART_TOKENS, context), batch=1)
    past = slots if context > PART_TOKENS else 0
    if native:
        reading, step, runtime = native_prefill(part, past), step_work(part, seats, 0), _NATIVE_PROCESS
    else:
        reading = prefill_of_layer(part, past) + 2 * part.vocabulary * 4
        step = step_work(part, seats, slots)
        runtime = _CPU_PROCESS + part.layers * _CPU_GRAPH if part.on_cpu else ASCEND_RESERVE
    work = max(reading, step)
    cache = 2 * part.layers * places * slots * part.inner * part.compute
    weights = _weights(preset, files, native)
    return Memory(
        weights=weights,
        gradients=0,
        optimizer=0,
        activations=work,
        cache=cache,
        runtime=runtime,
        total=weights + cache + runtime + work,
        moment="reading the last part of a prompt" if work == reading else "a step of all answers",
        activations_with_recompute=None,
        activations_without_recompute=None,
    )


def _weights(preset: Preset, files: AnsweringFiles, native: bool) -> int:
    """Bytes of weights and adapters that a device holds."""
    beside = 0 if files.lora is None else sum(one.bytes for one in stored_adapters(preset, files.lora))
    if native and files.weights is not None:
        return files.weights + beside
    if native and preset.model.weight_bits is not None:
        return RoundedBase.usual(preset.model).nbytes + beside
    return sum(one.bytes for one in stored_parameters(preset)) + beside


def prefill_of_layer(part: Part, past: int = 0) -> int:
    """What reading a part of a prompt has at work: rows, and the larger of attention, s N 8 h, and MLP, s N 4 f.

    Rows: input, normed input and output, 3 s N C, and a norm in float32, 8 N C. With `past` slots of earlier parts and
    K = past + N, attention is the plain one: H N K scores in the compute type, in float32, as weights in both, and the
    mask; keys and values of all K, 4 s K h with the ring that is filled from them.
    """
    s, tokens = part.compute, part.batch_tokens
    rows = tokens * part.hidden * (3 * s + 8)
    keys = past + tokens
    if past:
        attention = part.heads * tokens * keys * (2 * s + 12) + 4 * s * keys * part.inner
    else:
        attention = 4 * (3 if part.backend == "plain" else 5) * part.scores
    return rows + max(s * tokens * 8 * part.inner + attention, s * tokens * 4 * part.half)


def native_prefill(part: Part, past: int) -> int:
    """What the native library has at work: rows in float32, 4 N (3 C + 2 f), keys and values of all tokens, logits."""
    rows = 4 * part.batch_tokens * (3 * part.hidden + 2 * part.half)
    return rows + 2 * 4 * (past + part.batch_tokens) * part.inner + 2 * 4 * part.vocabulary


def step_work(part: Part, seats: int, slots: int) -> int:
    """What a step of `seats` answers has at work: rows, scores over the cache, logits in float32 and their copy."""
    scores = seats * part.heads * slots * (2 * part.compute + 12)
    rows = seats * (part.hidden * (3 * part.compute + 8) + part.compute * (8 * part.inner + 4 * part.half))
    return rows + scores + 2 * 4 * seats * part.vocabulary
