"""Compile the library: at installation (hatch_build.py) and by `spark13b native build`.

Only the standard library is imported here: at installation spark13b's own packages are not there yet.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = (
    "arithmetic.cpp",
    "decode.cpp",
    "prefill.cpp",
    "products.cpp",
    "onednn_products.cpp",
    "tile_products.cpp",
    "vector_products.cpp",
    "attention.cpp",
    "tile_attention.cpp",
    "tile_attention_gradient.cpp",
    "linear.cpp",
    "training_memory.cpp",
    "training.cpp",
    "optimizer.cpp",
    "operators.cpp",
)  # the headers beside them belong to them
LEVELS = {"arithmetic.cpp": 3}  # those that are compiled once for each set of instructions, see each_level.h
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden")
LIBRARIES = ("-ldl",)
_SECONDS = 300.0


_COMPILER = "install g++ or clang++, or name one in CXX"


class BuildError(RuntimeError):
    """There is no library, and why; `fix` says what to do about it."""

    def __init__(self, why: str, fix: str) -> None:
        self.fix = fix
        super().__init__(why)


def source_folder() -> Path:
    """Where the C++ lies."""
    return Path(__file__).resolve().parent


def library_name() -> str:
    """The file's name: it changes with the source, so that an old library is never used with a new source."""
    digest = hashlib.sha256(" ".join(FLAGS + LIBRARIES).encode())
    for path in [source_folder() / name for name in SOURCES] + sorted(source_folder().glob("*.h")):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return f"libspark13b-{platform.machine()}-{digest.hexdigest()[:12]}.so"


def cache_folder() -> Path:
    """The user's own place for libraries."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "spark13b" / "native"


def find_compiler() -> list[str] | None:
    """The compiler's command: CXX, else the first of c++, g++ and clang++ that is there."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in ([wanted] if wanted else []) + [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]) is not None:
            return command
    return None


def build(folder: Path, more: Sequence[str] = ()) -> Path:
    """Compile into `folder` -> the library, which appears whole or not at all. Raises BuildError.

    A library of the same source that is there already is replaced. `more`: flags after the usual ones.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("there is no C++ compiler: c++, g++ and clang++ were looked for", _COMPILER)
    target = folder / library_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as workspace:
            made = Path(workspace) / target.name
            objects = _compile([*compiler, *FLAGS, *more], Path(workspace))
            _run([*compiler, *FLAGS, *more, "-shared", *map(str, objects), *LIBRARIES, "-o", str(made)])
            made.replace(target)
    except OSError as error:
        room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space" if room else "let it be written to, or name another cache in XDG_CACHE_HOME for good"
        raise BuildError(f"cannot write to {folder}: {error.strerror or error}", fix) from error
    return target


def _compile(command: list[str], folder: Path) -> list[Path]:
    """Compile all sources into `folder`, as many at once as there are cores -> the object files."""
    units: list[tuple[str, list[str]]] = []
    for name in SOURCES:
        levels = LEVELS.get(name, 0)
        units += [(name, [f"-DONLY_LEVEL={level}"]) for level in range(levels)] or [(name, [])]
    objects = [folder / f"{number}.o" for number in range(len(units))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = [
            [*command, *more, "-c", str(source_folder() / name), "-o", str(target)]
            for (name, more), target in zip(units, objects, strict=True)
        ]
        list(pool.map(_run, commands))
    return objects


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} did not end within {_SECONDS:g} s", _COMPILER) from None
    except OSError as error:
        raise BuildError(f"{command[0]} does not start: {error.strerror or error}", _COMPILER) from error
    if result.returncode != 0:
        said = result.stderr.decode(errors="replace").strip()
        fix = "mend what it says, or name another compiler in CXX"
        raise BuildError(f"{command[0]} ended with exit code {result.returncode}:\n{said[-2000:]}", fix)
