"""Where presets are found by name. Light on purpose: `spark13b preset list` parses no YAML and loads no pydantic."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spark13b.errors import InputError, JobError, nearest

_SUFFIXES = (".yaml", ".yml")


def preset_folder() -> Path:
    """The folder of the built-in presets: inside an installed wheel, else beside `src` in the source tree."""
    package = Path(__file__).parents[1]
    for folder in (package / "presets", package.parents[1] / "presets"):
        if folder.is_dir():
            return folder
    raise JobError("the built-in presets are missing", where=package / "presets", fix="install spark13b again")


def preset_names() -> list[str]:
    """Names of the built-in presets, sorted. Parts are not among them."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def part_names() -> list[str]:
    """Names of the shared parts that presets extend, `parts/...`, sorted."""
    return sorted(f"parts/{path.stem}" for path in preset_folder().glob("parts/*.yaml"))


def preset_descriptions() -> dict[str, str]:
    """Name and one-line description of every built-in preset.

    Built-in presets keep `description: ...` on one line of its own, in plain text; a test holds them to it.
    """
    return {name: _description(preset_folder() / f"{name}.yaml") for name in preset_names()}


def find_preset(name_or_path: str | Path) -> Path:
    """The file of a built-in preset (or part) by name, or the file at a path. Raises InputError."""
    name = str(name_or_path)
    if isinstance(name_or_path, str) and name in (*preset_names(), *part_names()):
        return preset_folder() / f"{name}.yaml"
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError("a folder is not a preset", where=path, fix="name a YAML file in it")
    if isinstance(name_or_path, Path) or name.endswith(_SUFFIXES):
        raise InputError(
            "there is no such preset file", where=path, fix="check the path, or see 'spark13b preset list'"
        )
    raise no_such_preset(name, preset_names())


def find_extended(name: str, referrer: Path, line: int | None) -> Path:
    """The file that `extends: name` in `referrer` means: a path relative to `referrer`, else a built-in name."""
    if name.endswith(_SUFFIXES):
        path = referrer.parent / name
        if not path.is_file():
            fix = f"paths in 'extends' count from the folder of {referrer.name}"
            raise InputError(f"there is no file '{name}' to extend", where=referrer, line=line, fix=fix)
        return path
    known = [*preset_names(), *part_names()]
    if name not in known:
        raise no_such_preset(name, known, where=referrer, line=line)
    return preset_folder() / f"{name}.yaml"


def no_such_preset(
    name: str, known: Iterable[str], *, where: Path | None = None, line: int | None = None
) -> InputError:
    """The error for an unknown name, with the nearest known one."""
    near = nearest(name, known)
    fix = (f"did you mean '{near}'? " if near else "") + "see 'spark13b preset list', or give the path of a .yaml file"
    return InputError(f"there is no preset '{name}'", where=where, line=line, fix=fix)


def _description(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("description:"):
            return line.removeprefix("description:").strip()
    return ""
