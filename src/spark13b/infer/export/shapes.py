"""The fixed shapes of an export. Loads no MindSpore."""

from __future__ import annotations

from dataclasses import dataclass

from spark13b.config.model import SparkConfig
from spark13b.errors import InputError

_PROMPT_LENGTH = 128
CHECKED_TOKENS = 8  # that the check compares after a prompt
MOST_CHECKED = 64  # so many where that takes a text past the rings


@dataclass(frozen=True)
class ExportShapes:
    """`batch_size` texts at once, prompts of at most `prompt_length` tokens, texts of at most `context` in all.

    `slots` (S): what the rings hold of a text, the context or the window, whichever is shorter.
    """

    batch_size: int
    prompt_length: int
    context: int
    slots: int

    @property
    def least_past(self) -> int:
        """The shortest `prompt_length` with which the check lets a text outgrow the rings."""
        return max(1, self.slots + CHECKED_TOKENS - MOST_CHECKED)


def shapes_of(config: SparkConfig, batch_size: int, prompt_length: int | None, context: int | None) -> ExportShapes:
    """The shapes for a model. Raises InputError where they do not fit it.

    `context` None is the model's, `prompt_length` None is 128, or the context where that is less.
    """
    longest = config.seq_length
    context = longest if context is None else context
    prompt_length = min(_PROMPT_LENGTH, context) if prompt_length is None else prompt_length
    for value, least, option in (
        (batch_size, 1, "--batch-size"),
        (context, 2, "--context"),  # a prompt and an answer
        (prompt_length, 1, "--prompt-length"),
    ):
        if value < least:
            raise InputError(f"{value} is too small", where=option, fix=f"choose {least} or more")
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
            fix=f"choose at most {context}"
            + (f", or a longer --context, up to {longest}" if context < longest else ""),
        )
    return ExportShapes(batch_size, prompt_length, context, min(context, config.sparse_local_size))
