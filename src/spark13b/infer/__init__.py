"""Answers: the decode loop, the choice of tokens, prompt files. MindSpore is loaded when `generate` is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark13b.infer.generation import generate, stream

__all__ = ["generate", "stream"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from spark13b.infer import generation

        return getattr(generation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
