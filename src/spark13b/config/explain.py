"""The one place where pydantic's errors become ours: the key, where it was written, what is wrong, the cure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from spark13b.config import documents
from spark13b.config.checked import BrokenRules, Problem
from spark13b.config.layers import Layer
from spark13b.config.preset import known_keys
from spark13b.errors import InputError, nearest

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "finite_number": "a finite number",
    "model_type": "a section of keys",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "of at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "of at most"),
    "less_than": ("lt", "below"),
}


def explain(error: ValidationError, layer: Layer, name: str) -> InputError:
    """The InputError for a preset `name` made of `layer`: one problem in full, or several as a numbered list."""
    problems = [problem for details in error.errors() for problem in _problems(details)]
    first = problems[0]
    if len(problems) == 1:
        origin = layer.origin(first.key, first.besides)
        where, line = (origin.where, origin.line) if origin else (name, None)
        return InputError(f"{first.key}: {first.what}", where=where, line=line, fix=first.fix)
    lines = [f"{len(problems)} values of the preset are wrong"]
    lines += [f"  {number}. {_on_one_line(problem, layer)}" for number, problem in enumerate(problems, 1)]
    return InputError("\n".join(lines), where=name, fix=f"mend them, then run 'spark13b preset check {name}'")


def nearest_key(dotted: str) -> str | None:
    """The known key that was probably meant: the same name elsewhere, else a name alike here, else one elsewhere."""
    section, _, name = dotted.rpartition(".")
    everywhere: dict[str, str] = {}
    siblings: dict[str, str] = {}
    for key in known_keys():
        around, _, leaf = key.rpartition(".")
        everywhere.setdefault(leaf, key)
        if around == section:
            siblings[leaf] = key
    if name in everywhere:
        return everywhere[name]
    for names in (siblings, everywhere):
        near = nearest(name, names)
        if near:
            return names[near]
    return None


def _on_one_line(problem: Problem, layer: Layer) -> str:
    origin = layer.origin(problem.key, problem.besides)
    where = ""
    if origin:
        where = f" [{origin.where}" + (f":{origin.line}" if origin.line else "") + "]"
    return f"{problem.key}: {problem.what}{where}" + (f"; {problem.fix}" if problem.fix else "")


def _problems(details: ErrorDetails) -> Iterator[Problem]:
    key, kind, value = ".".join(map(str, details["loc"])), details["type"], details["input"]
    context = details.get("ctx", {})
    if kind == "extra_forbidden" and nearest(key, ("extends",)):
        yield Problem(key, "not a known key", "a preset file extends others by 'extends', in small letters")
    elif kind == "extra_forbidden":
        near = nearest_key(key)
        fix = f"did you mean '{near}'?" if near else "see 'spark13b preset show cpu-tiny-sft --resolved' for all keys"
        yield Problem(key, "not a known key", fix)
    elif kind == "missing":
        yield Problem(key, "missing", "write it, or extend a preset or part that has it")
    elif kind == "literal_error":
        choices = _choices(key)
        near = nearest(str(value), choices)
        fix = (f"did you mean '{near}'? " if near else "") + f"one of {', '.join(choices)}"
        yield Problem(key, f"{_shown(value)} is not one of the choices", fix)
    elif kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        yield Problem(key, f"{_shown(value)} is out of bounds", f"give a value {words} {context[limit]}")
    elif kind in _EXPECTED:
        yield Problem(key, f"expected {_EXPECTED[kind]}, got {_shown(value)}", _type_fix(key, kind, value))
    elif isinstance(context.get("error"), BrokenRules):
        prefix = f"{key}." if key else ""
        for problem in context["error"].problems:
            besides = tuple(prefix + name for name in problem.besides)
            yield Problem(prefix + problem.key, problem.what, problem.fix, besides)
    else:
        yield Problem(key, details["msg"], _meaning(key) or None)


def _type_fix(key: str, kind: str, value: Any) -> str:
    if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type") and _unquoted(value):
        return "remove the quotes"
    if kind == "string_type":
        return "put it in quotes"
    if kind in ("list_type", "tuple_type"):
        return f"write [{value}]" if isinstance(value, str) else "write [...]"
    if kind == "model_type":
        keys = [name.removeprefix(f"{key}.") for name in known_keys() if name.startswith(f"{key}.")]
        return f"write its keys below it, e.g. {key}.{keys[0]}"
    default = known_keys()[key].default
    return f"write {_EXPECTED[kind]}" + (f", e.g. {default}" if isinstance(default, int | float) else "")


def _unquoted(text: str) -> bool:
    """Whether the text would be a number or a truth value without its quotes."""
    try:
        return isinstance(documents.parse_value(text, "a quoted value"), int | float)
    except InputError:
        return False


def _choices(key: str) -> list[str]:
    return [str(choice) for choice in get_args(known_keys()[key].annotation)]


def _meaning(key: str) -> str:
    field = known_keys().get(key)
    return field.description or "" if field else ""


def _shown(value: Any) -> str:
    """A value as its writer would recognise it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    return f"the text '{value}'" if isinstance(value, str) else str(value)
