"""Choose what of a checkpoint to keep: weights, adapters, training state, masks and caches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial

from spark13b.model.names import Kind, kind_of
from spark13b.ckpt.tensors import Checkpoint, Derived

KIND_NAMES: dict[Kind, str] = {
    "weight": "weights",
    "adapter": "LoRA adapters",
    "training": "entries of training state",
    "buffer": "masks and caches",
}


NOT_BUFFERS: tuple[Kind, ...] = ("weight", "adapter", "training")


def only(source: Checkpoint, kinds: Collection[Kind]) -> Checkpoint:
    """The entries of `source` that are of these kinds."""
    recipes = {
        name: (info, partial(source.read, name)) for name, info in source.infos.items() if kind_of(name) in kinds
    }
    checked = [name for name in recipes if source.has_checksum(name)]
    return Derived(source.path, source.format, recipes, sources=[source], metadata=source.metadata, checked=checked)


def counted(names: Collection[str]) -> Mapping[Kind, int]:
    """How many entries there are of each kind."""
    return Counter(map(kind_of, names))


def left_out(names: Collection[str], kept: Collection[Kind]) -> str | None:
    """A sentence about what is not kept, None when all is."""
    parts = [f"{number} {KIND_NAMES[kind]}" for kind, number in counted(names).items() if kind not in kept]
    return f"left out: {', '.join(parts)}" if parts else None
