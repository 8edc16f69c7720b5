"""Choose what of a checkpoint to keep: weights, adapters, training state, masks and caches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from spark13b.ckpt.tensors import Checkpoint, Derived, Recipe
from spark13b.model.names import Kind, kind_of

KIND_NAMES: dict[Kind, str] = {
    "weight": "weights",
    "adapter": "LoRA adapters",
    "training": "entries of training state",
    "buffer": "masks and caches",
}


NOT_BUFFERS: tuple[Kind, ...] = ("weight", "adapter", "training")


def only(source: Checkpoint, kinds: Collection[Kind]) -> Checkpoint:
    """The entries of `source` that are of these kinds."""
    recipes = [Recipe.same(source, name) for name in source if kind_of(name) in kinds]
    return Derived(source.path, source.format, recipes, sources=[source], metadata=source.metadata)


def counted(names: Collection[str]) -> Mapping[Kind, int]:
    """How many entries there are of each kind."""
    return Counter(map(kind_of, names))


def left_out(names: Collection[str], kept: Collection[Kind]) -> str | None:
    """A sentence about what is not kept, None when all is."""
    parts = [f"{number} {KIND_NAMES[kind]}" for kind, number in counted(names).items() if kind not in kept]
    return f"left out: {', '.join(parts)}" if parts else None
