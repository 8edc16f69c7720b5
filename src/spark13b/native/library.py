"""Find the compiled library and open it; decoding.py, products.py and training.py call it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from spark13b.errors import InputError
from spark13b.native.build import cache_folder, library_name, source_folder

# Sets of instructions, as SPARK13B_NATIVE names them and as people do; the library's numbers are their places, and each
# has those before it.
_LEVELS = {"baseline": "baseline", "avx2": "AVX2", "avx512": "AVX-512", "amx": "AMX", "amx-float32": "AMX-float32"}
_WORDS, LEVELS = tuple(_LEVELS), tuple(_LEVELS.values())
_AMX, _FLOAT_AMX = map(_WORDS.index, ("amx", "amx-float32"))

_POINTER, _NUMBER, _SMALL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
# The functions that ctypes calls: types of their arguments, and of their result
_FUNCTIONS: dict[str, tuple[list[type], type]] = {
    "spark_compiler": ([], ctypes.c_char_p),
    "spark_level": ([], _SMALL),
    "spark_whole_numbers": ([_SMALL], _SMALL),
    "spark_open_onednn": ([ctypes.c_char_p], _SMALL),
    "spark_decode_step": (
        [*[_POINTER] * 6, _NUMBER, _NUMBER, *[_POINTER] * 3, _SMALL, _POINTER, *[_SMALL] * 3],
        _SMALL,
    ),
    "spark_decode_product": ([*[_POINTER] * 3, _NUMBER, _NUMBER, _SMALL, _POINTER, *[_SMALL] * 3], _SMALL),
    "spark_prefill": (
        [*[_POINTER] * 6, *[_NUMBER] * 4, *[_POINTER] * 2, _SMALL, _NUMBER, _POINTER, *[_SMALL] * 4],
        _SMALL,
    ),
    "spark_multiply": ([*[_POINTER] * 5, _SMALL, _SMALL], _SMALL),
    "spark_packed_bytes": ([], _NUMBER),
    "spark_logits_at_once": ([], _NUMBER),
    "spark_training_bytes": ([_POINTER, _POINTER], _NUMBER),
}


@dataclass(frozen=True)
class Found:
    """A library or, when there is none to use, why."""

    library: Library | None
    reason: str


class Library:
    """The compiled library at `path`, with no better instructions than `limit` of LEVELS, by default AMX.

    `calls`: its functions for ctypes. Raises OSError when the system does not load it.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.path = path
        self.calls = ctypes.CDLL(str(path))
        for name, (arguments, result) in _FUNCTIONS.items():
            function = getattr(self.calls, name)
            function.argtypes, function.restype = arguments, result
        self.compiler: str = self.calls.spark_compiler().decode()
        self.best: int = self.calls.spark_level()
        self.level = min(self.best, _AMX if limit is None else limit)
        self._lacking = "" if limit is None or limit <= self.best else LEVELS[limit]  # asked for, and not there
        # whether int8 and int4 weights are multiplied by whole numbers
        self.whole_numbers = self.has_whole_numbers(self.level)

    def has_whole_numbers(self, level: int) -> bool:
        """Whether that set of instructions has those for whole numbers here."""
        return bool(self.calls.spark_whole_numbers(level))

    @cached_property
    def onednn(self) -> str | None:
        """The version of oneDNN that multiplies many rows, or None where it is not found; looked for once."""
        path = onednn_path()
        version: int = self.calls.spark_open_onednn(os.fsencode(path)) if path is not None else 0
        return f"{version // 100}.{version % 100}" if version else None

    def multiplier(self, compute_type: str) -> str | None:
        """What multiplies many rows of that type: AMX, vectors or oneDNN, in a word or two; None where nothing does."""
        onednn = self.onednn  # is looked for, whoever multiplies
        if self.level >= (_AMX if compute_type == "bfloat16" else _FLOAT_AMX):
            return "AMX"
        return "vectors" if compute_type == "float32" else f"oneDNN {onednn}" if onednn else None

    def describe(self) -> str:
        """What it is, in a few words."""
        lacking = f" ({self._lacking} was asked for, and processor or compiler have it not)" if self._lacking else ""
        instructions = LEVELS[self.level]
        if self.whole_numbers:
            instructions += " with VNNI" if platform.machine() in ("x86_64", "AMD64") else " with SDOT"
        return f"{instructions}{lacking}, compiled by {self.compiler}"


def onednn_path() -> Path | None:
    """The oneDNN that MindSpore brings; MindSpore itself is not imported."""
    found = importlib.util.find_spec("mindspore")
    if found is None or found.origin is None:
        return None
    return next(iter(sorted((Path(found.origin).parent / "lib").glob("libdnnl.so*"))), None)


def thread_count() -> int:
    """Threads of a step: OMP_NUM_THREADS, as of MindSpore, else the cores that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_library() -> Found:
    """The library to use: the one beside the source, else the one in the user's cache.

    SPARK13B_NATIVE=0 wants none; baseline, avx2, avx512, amx (the usual one) or amx-float32 is the best set of
    instructions that may be used. Raises InputError for another word.
    """
    wanted = os.environ.get("SPARK13B_NATIVE", "")
    if wanted == "0":
        return Found(None, "SPARK13B_NATIVE=0 switches it off")
    if wanted and wanted not in _WORDS:
        raise InputError(
            f"SPARK13B_NATIVE={wanted} is neither 0 nor one of {', '.join(_WORDS)}",
            where="the environment variable SPARK13B_NATIVE",
            fix="name one of these, 0 to compute by MindSpore, or unset it for the best that the processor has",
        )
    limit = _WORDS.index(wanted) if wanted else None
    try:
        name = library_name()
    except OSError as error:
        return Found(None, f"its source cannot be read: {error}")
    for folder in (source_folder(), cache_folder()):
        if (folder / name).is_file():
            return _loaded(folder / name, limit)
    return Found(None, "it is not built")


@cache
def _loaded(path: Path, limit: int | None) -> Found:
    try:
        return Found(Library(path, limit), "")
    except (OSError, AttributeError) as error:  # of another architecture or C library, or cut off
        return Found(None, f"it does not load: {error}")
