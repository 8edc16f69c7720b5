"""The fixed shapes of an export. Loads no MindSpore."""

from __future__ import annotations

from dataclasses import dataclass

from spark13b.config.model import SparkConfig
from spark13b.errors import InputError


@dataclass(frozen=True)
class ExportShapes:
    """`batch_size` texts at once, prompts of at most `prompt_length` tokens, texts of at most `context` in all.

    `slots` (S): what the rings hold of a text, the context or the window, whichever is shorter.
    """

    batch_size: int
    prompt_length: int
    context: int
    slots: int


def shapes_of(config: SparkConfig, batch_size: int, prompt_length: int, context: int | None) -> ExportShapes:
    """The shapes for a model; `context` None is the model's. Raises InputError where they do not fit it."""
    longest = config.seq_length
    context = longest if context is None else context
    for value, option in ((batch_size, "--batch-size"), (prompt_length, "--prompt-length"), (context, "--context")):
        if value < 1:
            raise InputError(f"{value} is too small", where=option, fix="choose 1 or more")
    if context > longest:
        raise InputError(
            f"a context of {context:,} tokens is more than the model's {longest:,}",
            where="--context",
            fix=f"choose at most {longest}",
        )
    if prompt_length > context:
        raise InputError(
            f"prompts of {prompt_length:,} tokens are more than the context of {context:,}",
            where="--prompt-length",
            fix=f"choose at most {context}" + (f", or a longer --context, up to {longest}" if context < longest else ""),
        )
    return ExportShapes(batch_size, prompt_length, context, min(context, config.sparse_local_size))
