"""From a name or file to a complete, checked `Preset`.

Precedence, highest first: `--set`, command options, the preset file (over what it extends), built-in defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spark13b.config import documents
from spark13b.config.explain import explain
from spark13b.config.layers import Layer, Origin, merge
from spark13b.config.library import find_extended, find_preset
from spark13b.config.preset import Preset, known_keys
from spark13b.errors import InputError


def load_preset(
    name_or_path: str | Path, *, options: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> Preset:
    """The preset `name_or_path` with what it extends, then `options`, then `assignments` laid over it.

    `options` maps dotted keys to the values of command options (None: not given). `assignments` are `--set` strings,
    `dotted.key=VALUE`. Raises InputError, listing every wrong value at once.
    """
    path = find_preset(name_or_path)
    layers = [*_file_layers(path, ()), *_option_layers(options or {}), *map(assignment_layer, assignments)]
    return validated(merge(layers), str(name_or_path))


def validated(layer: Layer, name: str) -> Preset:
    """The preset made of `layer`; `name` is for messages. Raises InputError."""
    try:
        return Preset.model_validate(layer.values, strict=True)  # strict: "8", 8.0 and true are not the number 8
    except ValidationError as error:
        raise explain(error, layer, name) from None


def assignment_layer(assignment: str) -> Layer:
    """One `--set dotted.key=VALUE`. VALUE is YAML; for a key that holds text it is taken as it stands."""
    where = f"--set {assignment}"
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise InputError("not of the form KEY=VALUE", where=where, fix="e.g. --set model.seq_length=4096")
    return Layer.single(key, _assigned(key, text, where), Origin(where))


def _assigned(key: str, text: str, where: str) -> Any:
    field = known_keys().get(key)
    if field is not None and field.annotation is str:
        return text
    if not text.strip():
        raise InputError(f"{key}: no value after '='", where=where, fix="write a value; null stands for none")
    return documents.parse_value(text, where)


def _option_layers(options: Mapping[str, Any]) -> Iterator[Layer]:
    for key, value in options.items():
        if value is not None:
            yield Layer.single(key, value, Origin("the command's options"))


def _file_layers(path: Path, chain: tuple[Path, ...]) -> Iterator[Layer]:
    """What `path` extends, in order, then its own values."""
    layer = documents.read(path)
    chain = (*chain, path.resolve())
    origin = layer.origin("extends")
    line = origin.line if origin else None
    for name in _extended_names(layer, path, line):
        target = find_extended(name, path, line)
        if target.resolve() in chain:
            circle = chain[chain.index(target.resolve()) :]
            names = " -> ".join(member.name for member in (*circle, circle[0]))
            fix = "remove one of the 'extends' in the circle"
            raise InputError(f"presets extend each other in a circle: {names}", where=path, line=line, fix=fix)
        yield from _file_layers(target, chain)
    yield Layer({key: value for key, value in layer.values.items() if key != "extends"}, layer.origins)


def _extended_names(layer: Layer, path: Path, line: int | None) -> list[str]:
    names = layer.values.get("extends", [])
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fix = "write 'extends: NAME' or 'extends: [NAME, FILE.yaml]'"
        raise InputError("extends: expected names of presets, parts or files", where=path, line=line, fix=fix)
    return names
