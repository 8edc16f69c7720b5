"""Answers: the decode loop, the choice of tokens, prompt files. MindSpore is loaded when `generate` is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark13b.infer.generate import generate, stream

__all__ = ["generate", "stream"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        # the module `generate` must not shadow the function of that name
        value = getattr(importlib.import_module("spark13b.infer.generate"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
