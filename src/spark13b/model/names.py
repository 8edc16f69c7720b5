"""The names and shapes of a Spark model's parameters (SPEC section 1), and what else a checkpoint may hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spark13b.errors import InputError, nearest

if TYPE_CHECKING:
    from spark13b.config.model import SparkConfig
    from spark13b.config.sections import LoraConfig

Kind = Literal["weight", "adapter", "training", "buffer"]

EMBEDDING = "transformer.embedding.word_embeddings.embedding_table"
_LAYERS = "transformer.transformer.layers."
_LAST_NORM = ("transformer.transformer.layernorm.gamma", "transformer.transformer.layernorm.beta")
_SHOWN = 5  # names of each sort in an error

# Masks and caches of the original: made anew by the model, never loaded.
_BUFFER = re.compile(r"(^|[._])(slice_sparse_mask|attention_mask|key_past|value_past)$")
# MindFormers' name; of its versions, some write A and B as capitals, and the oldest `tk` for mindpet.
_ADAPTER = re.compile(r"\.(mindpet|tk)_delta_lora_[abAB]$")
# Optimizer state and counters of our trainer, of MindSpore's optimizers and of the original's training wrapper. A state
# is named like its parameter with the sort before it; counters stand alone.
_STATE = r"adam_[mv]|master|moments?[12]?|accum|accumulation|grad_accum|moving_avg|moving_average"
_COUNTERS = (
    r"global_step|step_num|epoch_num|cur_step_num|cur_epoch_num|learning_rate|beta[12]_power|"
    r"loss_scale|scale_sense|good_steps|current_iterator_step|last_overflow_iterator_step"
)
_TRAINING = re.compile(rf"^({_STATE})([._]|$)|(^|\.)({_COUNTERS})$")

# How Megatron cuts a model over devices: these by rows (outputs), those by columns (inputs)
_BY_ROWS = re.compile(r"\.(q_proj|k_proj|v_proj|fc0|fc1)\.(weight|bias|mindpet_delta_lora_b)$")
_BY_COLUMNS = re.compile(r"\.(out_proj|fc2)\.(weight|mindpet_delta_lora_a)$")


def model_axis(name: str, dimensions: int) -> int | None:
    """The axis along which model_parallel devices share this parameter; None when each holds the whole."""
    if dimensions and (_BY_ROWS.search(name) or is_embedding(name)):
        return 0
    return 1 if dimensions == 2 and _BY_COLUMNS.search(name) else None


def is_cut_by_columns(linear: str) -> bool:
    """Whether the linear layer of that name (`fc2`, for example) takes inputs that are divided over devices."""
    return _BY_COLUMNS.search(f".{linear}.weight") is not None


def kind_of(name: str) -> Kind:
    """What an entry of a checkpoint is: a model weight, a LoRA adapter, training state, or a mask or cache."""
    if _BUFFER.search(name):
        return "buffer"
    if _TRAINING.search(name):  # before adapters: these have optimizer state of their own
        return "training"
    if _ADAPTER.search(name):
        return "adapter"
    return "weight"


def adapter_name(name: str) -> str:
    """The name that an adapter of a file has here: there it may be spelt otherwise, with more or less before it."""
    linear, _, last = name.rpartition(".")
    found = re.search(r"(^|\.)layers\.(\d+\..+)$", linear)
    return f"{_LAYERS}{found[2]}.mindpet_delta_lora_{last[-1].lower()}" if found else name


def is_norm(name: str) -> bool:
    """Whether this is a LayerNorm's parameter, by MindSpore's or torch's name."""
    return name.endswith(("norm.gamma", "norm.beta", "norm.weight", "norm.bias"))


def is_embedding(name: str) -> bool:
    """Whether this is the word embedding, by MindSpore's or torch's name."""
    return name.endswith(("word_embeddings.embedding_table", "word_embeddings.weight"))


def is_model_name(name: str) -> bool:
    """Whether this is a parameter of a Spark model, of whatever size."""
    number, _, rest = name.removeprefix(_LAYERS).partition(".")
    if name.startswith(_LAYERS) and number.isdigit():
        return rest in _layer_shapes(1, 1)
    return name == EMBEDDING or name in _LAST_NORM


def expected_shapes(config: SparkConfig) -> dict[str, tuple[int, ...]]:
    """Full name -> shape of every parameter of the model, in the order of a complete checkpoint."""
    layer = _layer_shapes(config.hidden_size, config.ffn_hidden_size // 2)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for index in range(config.num_layers):
        shapes |= {f"{_LAYERS}{index}.{name}": shape for name, shape in layer.items()}
    return shapes | dict.fromkeys(_LAST_NORM, (config.hidden_size,))


def _layer_shapes(hidden: int, half: int) -> dict[str, tuple[int, ...]]:
    """Name within a layer -> shape; `half` is the width of fc0 and of fc1."""
    shapes: dict[str, tuple[int, ...]] = {"layer_norm.gamma": (hidden,), "layer_norm.beta": (hidden,)}
    for linear in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= {f"attention.{linear}.weight": (hidden, hidden), f"attention.{linear}.bias": (hidden,)}
    shapes |= {"final_layer_norm.gamma": (hidden,), "final_layer_norm.beta": (hidden,)}
    for linear, rows, columns in (("fc0", half, hidden), ("fc1", half, hidden), ("fc2", hidden, half)):
        shapes |= {f"mlp.{linear}.weight": (rows, columns), f"mlp.{linear}.bias": (rows,)}
    return shapes


def match_names(found: Mapping[str, tuple[int, ...]], config: SparkConfig, *, where: str | Path | None = None) -> None:
    """Check that `found` (name -> shape) holds the model's parameters and no other weights.

    Adapters, training state, masks and caches do not count. Raises one InputError that lists missing, unknown (each
    with the nearest known name) and misshapen parameters, a few of each, with their numbers.
    """
    expected = expected_shapes(config)
    lines, missing, unknown = _mismatch(found, expected, "weight", _with_nearest)
    if lines:
        what = "\n".join(["the checkpoint does not fit the model", *lines])
        raise InputError(what, where=where, fix=_cure(found, len(expected), missing, unknown))


def adapter_shapes(config: SparkConfig, lora: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Full name -> shape of every adapter beside the linear layers that `lora.targets` finds, in the layers' order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in expected_shapes(config).items():
        linear, _, last = name.rpartition(".")
        if last == "weight" and lora.adapts(linear.rpartition(".")[2]):
            a, b = adapter_names(linear)
            shapes |= {a: (lora.rank, shape[1]), b: (shape[0], lora.rank)}
    return shapes


def adapter_names(linear: str) -> tuple[str, str]:
    """Full names of A and B beside a linear layer of that full name."""
    return f"{linear}.mindpet_delta_lora_a", f"{linear}.mindpet_delta_lora_b"


def match_adapters(
    found: Mapping[str, tuple[int, ...]], config: SparkConfig, lora: LoraConfig, *, where: str | Path | None = None
) -> None:
    """Check that the adapters in `found` (name -> shape) are those of this model and `lora`. Raises one InputError."""
    lines, _, _ = _mismatch(found, adapter_shapes(config, lora), "adapter", lambda unknown, known: unknown)
    if lines:
        what = "\n".join(["the adapters do not fit the model and the lora section of the preset", *lines])
        fix = "set lora.rank and lora.targets to those that the adapters were trained with, or choose their base model"
        raise InputError(what, where=where, fix=fix)


def _mismatch(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    kind: Kind,
    shown: Callable[[list[str], list[str]], Iterable[str]],
) -> tuple[list[str], list[str], list[str]]:
    """Lines on what is missing, unknown (of `kind`) and of another shape; the missing names, the unknown names.

    `shown`: unknown names and known ones -> a line for each unknown.
    """
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected and kind_of(name) == kind]
    misshapen = [name for name in expected if name in found and tuple(found[name]) != expected[name]]
    shapes = (f"{name} is {_shape(found[name])}, the model's is {_shape(expected[name])}" for name in misshapen)
    lines = [
        *_listed("missing", missing, missing),
        *_listed("unknown", unknown, shown(unknown, missing or list(expected))),
        *_listed("of another shape", misshapen, shapes),
    ]
    return lines, missing, unknown


def _listed(label: str, names: list[str], lines: Iterable[str]) -> Iterator[str]:
    if names:
        yield f"  {len(names)} {label}:"
        yield from (f"    {line}" for line, _ in zip(lines, range(_SHOWN), strict=False))
        if len(names) > _SHOWN:
            yield f"    ... and {len(names) - _SHOWN} more"


def _with_nearest(unknown: list[str], known: list[str]) -> Iterator[str]:
    for name in unknown:  # lazily: difflib is slow and only a few are shown
        near = nearest(name, known)
        yield name + (f" (nearest known: {near})" if near else "")


def _cure(found: Mapping[str, tuple[int, ...]], expected: int, missing: list[str], unknown: list[str]) -> str:
    if any(".q_k_v_" in name or name.endswith("word_embeddings.weight") for name in unknown):
        return "these are torch's names: run 'spark13b convert torch2ms' first"
    if len(missing) == expected and not unknown and any(kind_of(name) == "adapter" for name in found):
        return "the file holds adapters only: load them beside a base model"
    return "choose the preset that the checkpoint was made with; 'spark13b ckpt info' shows which fit"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
