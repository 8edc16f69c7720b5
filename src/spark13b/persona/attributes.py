"""attribute.json: what a persona is. `{"姓名|名字|称呼": "小雅", ...}`: a key lists synonyms, joined by `|`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spark13b.characters import WHOLE, half_character
from spark13b.errors import InputError

_FORM = 'write {"姓名|名字|称呼": "小雅", "年龄": "20岁"}'


def read_attributes(path: Path) -> dict[str, str]:
    """The attributes of a persona file in their order, key to value; numbers become text.

    Raises InputError for a file that is missing or not a JSON object, holds no attribute, an empty one, or the
    same name twice.
    """
    if not path.is_file():
        raise InputError("there is no such file", where=path, fix="check --attribute")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except UnicodeDecodeError:
        raise InputError(
            "the file is not UTF-8", where=path, fix=f"convert it: iconv -f gb18030 -t utf-8 '{path}' > NEW"
        ) from None
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        raise InputError(f"the file is not JSON: {error}", where=path, line=line, fix=_FORM) from None
    if not isinstance(found, _Pairs):
        raise InputError("the attributes are not one JSON object", where=path, fix=_FORM)
    if half := half_character("".join(f"{key} {value}" for key, value in found)):
        raise InputError(f"an attribute holds {half}", where=path, fix=WHOLE)
    if not found:
        raise InputError("the file has no attributes", where=path, fix=_FORM)
    attributes: dict[str, str] = {}
    seen: dict[str, str] = {}
    for key, value in found:
        attributes[key] = _value(path, key, value)
        for name in _names(path, key):
            if name in seen:
                raise InputError(
                    f"'{name}' is named twice: '{seen[name]}', '{key}'", where=path, fix="keep one of them"
                )
            seen[name] = key
    return attributes


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written, keys that stand twice among them."""


def _value(path: Path, key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"the value of '{key}' is not a text", where=path, fix=_FORM)
    text = str(value).strip()
    if not text:
        raise InputError(f"the attribute '{key}' is empty", where=path, fix="give it a value, or remove it")
    return text


def _names(path: Path, key: str) -> list[str]:
    names = [name.strip() for name in key.split("|")]
    if not all(names):
        raise InputError(f"a name in the key '{key}' is empty", where=path, fix="write names joined by |: 姓名|名字")
    return names
