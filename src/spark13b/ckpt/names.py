"""The names and shapes of a Spark model's parameters (SPEC section 1), and what else a checkpoint may hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spark13b.errors import InputError, nearest

if TYPE_CHECKING:
    from spark13b.config.model import SparkConfig

Kind = Literal["weight", "adapter", "training", "buffer"]

EMBEDDING = "transformer.embedding.word_embeddings.embedding_table"
_SHOWN = 5  # names of each sort in an error

# Masks and caches of the original: made anew by the model, never loaded.
_BUFFER = re.compile(r"(^|[._])(slice_sparse_mask|attention_mask|key_past|value_past)$")
_ADAPTER = re.compile(r"\.mindpet_delta_lora_[ab]$")
# Optimizer state and counters, of MindSpore's optimizers, of MindFormers' wrappers and of the original's.
_TRAINING = re.compile(
    r"^(adam_[mv]|moments?\d*|accum|accumulation|moving_avg|moving_average|hyper_map|optimizer|grad_accum)([._]|$)"
    r"|^(global_step|step_num|epoch_num|learning_rate|loss_scale|scale_sense|current_iterator_step|last_overflow_iterator_step"
    r"|cur_epoch_num|cur_step_num|best_step|network_global_step|beta[12]_power|clip_norm|weight_decay|good_steps)$"
    r"|(^|\.)(moment[12]|adam_[mv]|global_step|scale_sense)$"
)


def kind_of(name: str) -> Kind:
    """What an entry of a checkpoint is: a model weight, a LoRA adapter, training state, or a mask or cache."""
    if _BUFFER.search(name):
        return "buffer"
    if _TRAINING.search(name):  # before adapters: these have optimizer state of their own
        return "training"
    if _ADAPTER.search(name):
        return "adapter"
    return "weight"


def is_norm(name: str) -> bool:
    """Whether this is a LayerNorm's parameter."""
    return name.endswith(("norm.gamma", "norm.beta"))


def is_embedding(name: str) -> bool:
    """Whether this is the word embedding."""
    return name.endswith("word_embeddings.embedding_table")


def expected_shapes(config: SparkConfig) -> dict[str, tuple[int, ...]]:
    """Full name -> shape of every parameter of the model, in the order of a complete checkpoint."""
    hidden, half = config.hidden_size, config.ffn_hidden_size // 2
    layer: dict[str, tuple[int, ...]] = {"layer_norm.gamma": (hidden,), "layer_norm.beta": (hidden,)}
    for linear in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layer |= {f"attention.{linear}.weight": (hidden, hidden), f"attention.{linear}.bias": (hidden,)}
    layer |= {"final_layer_norm.gamma": (hidden,), "final_layer_norm.beta": (hidden,)}
    for linear, rows, columns in (("fc0", half, hidden), ("fc1", half, hidden), ("fc2", hidden, half)):
        layer |= {f"mlp.{linear}.weight": (rows, columns), f"mlp.{linear}.bias": (rows,)}

    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        shapes |= {f"transformer.transformer.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes |= {
        "transformer.transformer.layernorm.gamma": (hidden,),
        "transformer.transformer.layernorm.beta": (hidden,),
    }
    return shapes


def match_names(found: Mapping[str, tuple[int, ...]], config: SparkConfig, *, where: str | Path | None = None) -> None:
    """Check that `found` (name -> shape) holds the model's parameters and no other weights.

    Adapters, training state, masks and caches do not count. Raises one InputError that lists missing, unknown (each
    with the nearest known name) and misshapen parameters, a few of each, with their numbers.
    """
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected and kind_of(name) == "weight"]
    misshapen = [name for name in expected if name in found and tuple(found[name]) != expected[name]]
    if not (missing or unknown or misshapen):
        return
    lines = ["the checkpoint does not fit the model"]
    lines += _listed("missing", missing, missing)
    lines += _listed("unknown", unknown, _with_nearest(unknown, missing or list(expected)))
    shapes = (f"{name} is {_shape(found[name])}, the model's is {_shape(expected[name])}" for name in misshapen)
    lines += _listed("of another shape", misshapen, shapes)
    raise InputError("\n".join(lines), where=where, fix=_cure(found, len(expected), missing, unknown))


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
