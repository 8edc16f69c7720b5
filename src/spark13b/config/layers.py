"""Layers of values, each knowing where every key was written; a later layer wins over an earlier one, key by key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# Ways to say one thing: a layer that uses one of them takes the others back from the layers below
_ALTERNATIVES = ("train.steps", "train.epochs", "train.tokens")


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a file and line, or an option of the command line."""

    where: str
    line: int | None = None


@dataclass(frozen=True)
class Layer:
    """Nested values and the origin of each dotted key, in the order of writing."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)

    @classmethod
    def single(cls, dotted: str, value: Any, origin: Origin) -> Layer:
        """A layer that sets one dotted key."""
        parts = dotted.split(".")
        keys = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
        if isinstance(value, dict):
            keys += leaves(value, f"{dotted}.")
        for part in reversed(parts):
            value = {part: value}
        return cls(value, dict.fromkeys(keys, origin))

    def get(self, dotted: str) -> Any:
        """The value of a dotted key, None when it is not set."""
        value: Any = self.values
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def origin(self, dotted: str, besides: tuple[str, ...] = ()) -> Origin | None:
        """Where the last written of these keys was written, or else the nearest section around `dotted`."""
        for key in reversed(self.origins):
            if key == dotted or key in besides:
                return self.origins[key]
        while dotted:
            if dotted in self.origins:
                return self.origins[dotted]
            dotted = dotted.rpartition(".")[0]
        return None


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(leaves(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def merge(layers: Iterable[Layer]) -> Layer:
    """One layer of all: sections merge key by key, later values win, lists and scalars are replaced."""
    merged = Layer()
    for layer in layers:
        lower = merged.values
        if any(layer.get(way) is not None for way in _ALTERNATIVES):
            for way in _ALTERNATIVES:
                lower = _without(lower, way)
        earlier = {key: origin for key, origin in merged.origins.items() if key not in layer.origins}
        merged = Layer(_merge(lower, layer.values), earlier | layer.origins)
    return merged


def _merge(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _without(values: dict[str, Any], dotted: str) -> dict[str, Any]:
    section, key = dotted.split(".")
    inner = values.get(section)
    if not isinstance(inner, dict):
        return values
    return {**values, section: {name: value for name, value in inner.items() if name != key}}
