"""YAML in and out: files as layers that know their lines, numbers like 1e-4 as numbers, every flaw one InputError."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from spark13b.config.layers import Layer, Origin
from spark13b.errors import InputError


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml is ten times faster
    """YAML 1.1 as PyYAML reads it, except that 1e-4 is a number and a date is text, as in YAML 1.2."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Block style, keys in their own order."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read(path: Path) -> Layer:
    """The mapping in a YAML file. Raises InputError naming the file, and the line of a syntax error."""
    node, values = _parse(read_text(path), str(path))
    if values is None:
        raise InputError("the file is empty", where=path, fix="see 'spark13b preset show 800T-A2-sft' for an example")
    if not isinstance(values, dict):
        raise InputError("the file holds no sections", where=path, fix="write 'key: value' lines, e.g. 'task: sft'")
    return Layer(values, _origins(node, str(path)))


def read_text(path: Path) -> str:
    """The file as it is written. Raises InputError when it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("the file is not UTF-8 text", where=path, fix="save it as UTF-8") from error


def parse_value(text: str, where: str) -> Any:
    """A value given on the command line, read as YAML."""
    return _parse(text, where)[1]


def dump(values: dict[str, Any]) -> str:
    """Values as block YAML, in the order given."""
    text: str = yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10**6
    )
    return text


def _parse(text: str, where: str) -> tuple[Any, Any]:
    """The root node (for lines) and its value."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, None
            _check(node, where, ())
            return node, loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"broken YAML: {error.problem or error.context}"
        fix = "check the indentation, colons and quotes there"
        raise InputError(what, where=where, line=mark.line + 1 if mark else None, fix=fix) from error
    except yaml.YAMLError as error:  # a character that YAML forbids has no mark
        what = f"broken YAML: {str(error).splitlines()[0]}"
        raise InputError(what, where=where, fix="remove the control characters") from error
    except (ValueError, RecursionError) as error:  # a number like 0x_; a thousand brackets
        raise InputError(f"broken YAML: {error}", where=where, fix="put texts in quotes") from error


def _check(node: Any, where: str, above: tuple[int, ...]) -> None:
    """Refuse what YAML lets pass in silence: a key given twice, a key that is not text, a value inside itself."""
    line = node.start_mark.line + 1
    if id(node) in above:
        raise InputError("broken YAML: a value contains itself", where=where, line=line, fix="remove the '*' alias")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, where, (*above, id(node)))
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        key_line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InputError("broken YAML: a key is not text", where=where, line=key_line, fix="write 'key: value'")
        if key.value in seen:
            fix = "keep one of them"
            raise InputError(f"the key '{key.value}' stands twice", where=where, line=key_line, fix=fix)
        seen.add(key.value)
        if key.tag != "tag:yaml.org,2002:merge":
            key.tag = "tag:yaml.org,2002:str"  # `on:` or `910:` is a misspelt key like any other
        _check(value, where, (*above, id(node)))


def _origins(node: Any, where: str, prefix: str = "") -> dict[str, Origin]:
    origins: dict[str, Origin] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = prefix + key.value
            origins[dotted] = Origin(where, key.start_mark.line + 1)
            origins.update(_origins(value, where, f"{dotted}."))
    return origins
