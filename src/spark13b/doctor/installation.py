"""Python and the packages, against what spark13b was installed to need."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spark13b.doctor.findings import Finding
from spark13b.errors import InputError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_REINSTALL = "install spark13b again: pip install --constraint constraints.txt ."


def python() -> Iterator[Finding]:
    """The version of Python, against the one that the package asks for."""
    version = platform.python_version()
    found = f"{version} ({sys.executable})"
    try:
        from packaging.specifiers import SpecifierSet

        wanted = importlib.metadata.metadata("spark13b")["Requires-Python"] or ""
        fits = SpecifierSet(wanted).contains(version, prereleases=True)
    except (ImportError, importlib.metadata.PackageNotFoundError):  # `packages` says what is missing
        yield Finding("python", "ok", found)
        return
    if fits:
        yield Finding("python", "ok", found)
    else:
        fix = "make an environment with Python 3.11 and install spark13b there"
        yield Finding("python", "fail", f"{found}, not {wanted}", fix)


def packages() -> Iterator[Finding]:
    """One line when all packages are as required; else one for each that is not."""
    try:
        from packaging.requirements import Requirement

        lines = importlib.metadata.requires("spark13b")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "warn", "spark13b runs without being installed", "pip install .")
        return
    except ImportError:
        yield Finding("packages", "fail", "the package packaging is not installed", _REINSTALL)
        return
    required = [Requirement(line) for line in lines or []]
    required = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [problem for problem in map(_problem, required) if problem is not None]
    for problem in wrong:
        yield Finding("packages", "fail", problem, _REINSTALL)
    if not wrong:
        yield Finding("packages", "ok", f"{len(required)} packages, all in the versions that spark13b asks for")


def native() -> Iterator[Finding]:
    """The library that answers and trains on a CPU; MindSpore does it where there is none."""
    from spark13b.native.library import find_library

    try:
        found = find_library()
    except InputError as error:
        yield Finding("native", "fail", error.what, error.fix or "")
        return
    if found.library is not None:
        multipliers = {kind: found.library.multiplier(kind) for kind in ("float32", "bfloat16")}
        users = "answers and training on a CPU use it" if all(multipliers.values()) else "answers on a CPU use it"
        users += "".join(f", {kind} products by {name}" for kind, name in multipliers.items() if name)
        yield Finding("native", "ok", f"{found.library.describe()}; {users}")
    else:
        fix = "spark13b native build, which needs a C++ compiler, makes answers and training on a CPU faster"
        yield Finding("native", "missing", f"no native library: {found.reason}; MindSpore computes all", fix)


def _problem(required: Requirement) -> str | None:
    try:
        version = importlib.metadata.version(required.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{required.name} is not installed, {required.specifier or 'any version'} is needed"
    if required.specifier.contains(version, prereleases=True):
        return None
    return f"{required.name} is {version}, {required.specifier} is needed"
