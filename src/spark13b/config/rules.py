"""The rules between the sections of a preset, and what is worth a note though it is allowed.

Facts behind the rules: the acctransformer kernel of the 910A works in blocks of 128 tokens, and the 910A has no
bfloat16 (both from the original's release); MindSpore 2.9's documentation of `ops.flash_attention_score` allows head
sizes that are multiples of 16 up to 512, 256 heads, float16 and bfloat16, and the Atlas A2 only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from spark13b.config.checked import Problem

if TYPE_CHECKING:
    from spark13b.config.preset import Preset

ACCTRANSFORMER_BLOCK = 128  # tokens
_STARTING_SCALE = 2**32  # no gradient of a usual size fits float16 under it; a dynamic scale halves its way down
_ANY_DEVICE = "write auto, plain or blocked"
_TYPE_KEYS = (
    "compute_type",
    "param_init_type",
    "embedding_init_type",
    "layernorm_compute_type",
    "softmax_compute_type",
)


def broken_rules(preset: Preset) -> Iterator[Problem]:
    """Every broken rule between sections; the sections themselves are valid already."""
    yield from _split(preset)
    yield from _numbers(preset)
    yield from _attention(preset)
    yield from _length(preset)
    yield from _adapters(preset)
    yield from _rounded(preset)


def notes(preset: Preset) -> list[str]:
    """Combinations that work but may not be meant, one sentence each."""
    return list(_notes(preset))


def _split(preset: Preset) -> Iterator[Problem]:
    parallel, model, devices = preset.parallel, preset.model, preset.machine.devices
    if parallel.devices != devices:
        yield Problem(
            "parallel.data_parallel",
            f"{parallel.data_parallel} x model_parallel {parallel.model_parallel} is {parallel.devices} devices, "
            f"but machine.devices is {devices}",
            f"change one of the three, e.g. machine.devices: {parallel.devices}",
            ("parallel.model_parallel", "machine.devices"),
        )
    divided = {"num_heads": model.num_heads, "vocab_size": model.vocab_size}
    divided["ffn_hidden_size / 2"] = model.ffn_hidden_size // 2
    if parallel.sequence_parallel:
        divided["seq_length"] = model.seq_length
    for name, value in divided.items():
        if value % parallel.model_parallel:
            yield Problem(
                "parallel.model_parallel",
                f"{parallel.model_parallel} does not divide model.{name}, {value}",
                f"make it a divisor of {value}, or model.{name} a multiple of {parallel.model_parallel}",
                (f"model.{name.split()[0]}",),
            )


def _numbers(preset: Preset) -> Iterator[Problem]:
    model, machine = preset.model, preset.machine
    if machine.chip == "910A":
        for key in _TYPE_KEYS:
            if getattr(model, key) == "bfloat16":
                fix = "write float16 or float32"
                yield Problem(f"model.{key}", "the 910A has no bfloat16", fix, ("machine.chip",))
    if preset.task != "infer" and model.compute_type == "float16" and preset.train.loss_scale == "none":
        yield Problem(
            "train.loss_scale",
            "float16 gradients vanish without a loss scale",
            "set train.loss_scale to dynamic (or to fixed, with its loss_scale_value)",
            ("model.compute_type", "task"),
        )


def _rounded(preset: Preset) -> Iterator[Problem]:
    bits = preset.model.weight_bits
    if bits is not None and (preset.task not in ("infer", "lora") or preset.machine.device != "cpu"):
        what = f"weights of {bits} bits are for answers and LoRA on a CPU"
        yield Problem("model.weight_bits", what, "write null", ("task", "machine.device"))
    if bits is not None and preset.task == "lora" and preset.parallel.model_parallel > 1:
        what = f"one process trains adapters beside weights of {bits} bits"
        fix = "write 1; parallel.data_parallel shares rows instead"
        yield Problem("parallel.model_parallel", what, fix, ("model.weight_bits",))


def _attention(preset: Preset) -> Iterator[Problem]:
    if preset.machine.device == "cpu" and preset.model.attention_backend in ("ascend", "acctransformer"):
        what = f"{preset.model.attention_backend} is a kernel of the Ascend, but machine.device is cpu"
        yield Problem("model.attention_backend", what, _ANY_DEVICE, ("machine.device",))
    elif preset.machine.device == "ascend" and preset.model.attention_backend == "native":
        what = "native is attention on a CPU, but machine.device is ascend"
        yield Problem("model.attention_backend", what, _ANY_DEVICE, ("machine.device",))
    elif preset.model.attention_backend == "ascend":
        yield from _ascend_attention(preset)
    elif preset.model.attention_backend == "acctransformer":
        yield from _acctransformer_attention(preset)


def _ascend_attention(preset: Preset) -> Iterator[Problem]:
    model, key = preset.model, "model.attention_backend"
    heads = model.num_heads // preset.parallel.model_parallel
    if preset.machine.chip == "910A":
        what = "the kernel behind ascend needs a 910B, but machine.chip is 910A"
        yield Problem(key, what, "write acctransformer or auto", ("machine.chip",))
    if model.head_size % 16 or model.head_size > 512:
        what = (
            f"ascend needs a head size that is a multiple of 16 up to 512; hidden_size / num_heads is {model.head_size}"
        )
        yield Problem(key, what, _ANY_DEVICE, ("model.num_heads", "model.hidden_size"))
    if heads > 256:
        what = f"ascend takes at most 256 heads a device, not {heads}"
        yield Problem(key, what, _ANY_DEVICE, ("model.num_heads", "parallel.model_parallel"))
    if model.compute_type == "float32":
        what = "ascend computes in float16 or bfloat16, but model.compute_type is float32"
        yield Problem(key, what, _ANY_DEVICE, ("model.compute_type",))


def _acctransformer_attention(preset: Preset) -> Iterator[Problem]:
    for name in ("seq_length", "sparse_local_size"):
        value = getattr(preset.model, name)
        if value % ACCTRANSFORMER_BLOCK:
            yield Problem(
                f"model.{name}",
                f"{value} is not a multiple of {ACCTRANSFORMER_BLOCK}, the block of the acctransformer kernel",
                f"e.g. {-(-value // ACCTRANSFORMER_BLOCK) * ACCTRANSFORMER_BLOCK}",
                ("model.attention_backend",),
            )


def _length(preset: Preset) -> Iterator[Problem]:
    steps, schedule = preset.train.steps, preset.schedule
    if steps is not None and schedule.total_steps is None and schedule.warmup_steps >= steps:
        yield Problem(
            "schedule.warmup_steps",
            f"{schedule.warmup_steps} leaves nothing of the run's {steps} steps",
            "choose fewer warm-up steps than train.steps",
            ("train.steps",),
        )


def _adapters(preset: Preset) -> Iterator[Problem]:
    model = preset.model
    narrowest = min(model.hidden_size, model.ffn_hidden_size // 2)
    if preset.task == "lora" and preset.lora.rank >= narrowest:
        yield Problem(
            "lora.rank",
            f"{preset.lora.rank} is no low rank for matrices of {narrowest} rows or columns",
            "choose a smaller rank, 3 to 64 for example",
            ("model.hidden_size", "model.ffn_hidden_size"),
        )


def _notes(preset: Preset) -> Iterator[str]:
    model, train, parallel, generation = preset.model, preset.train, preset.parallel, preset.generation
    if model.sparse_local_size > model.seq_length:
        yield (
            f"model.sparse_local_size {model.sparse_local_size} is beyond seq_length {model.seq_length}: "
            "every token sees all before it"
        )
    if train.recompute_slice_activations and not (train.recompute and parallel.model_parallel > 1):
        yield "train.recompute_slice_activations does nothing without train.recompute and model_parallel above 1"
    if train.loss_scale == "fixed" and train.loss_scale_value >= _STARTING_SCALE:
        yield f"train.loss_scale_value {train.loss_scale_value:g} is where a dynamic scale starts; fixed, it overflows"
    if parallel.sequence_parallel and parallel.model_parallel == 1:
        yield "parallel.sequence_parallel does nothing with model_parallel 1"
    if preset.task == "lora" and preset.optimizer.master_weights:
        yield "optimizer.master_weights does nothing for adapters, which are float32 themselves"
    if preset.task == "infer":
        if generation.max_new_tokens >= model.seq_length:
            yield f"generation.max_new_tokens {generation.max_new_tokens} leaves no room for a prompt in seq_length"
        if not generation.do_sample and (generation.top_k, generation.top_p, generation.temperature) != (0, 1.0, 1.0):
            yield "generation.temperature, top_k and top_p do nothing without generation.do_sample"
    elif train.steps and preset.schedule.total_steps and train.steps < preset.schedule.total_steps:
        yield f"train.steps {train.steps} ends before the schedule's total_steps {preset.schedule.total_steps}"
