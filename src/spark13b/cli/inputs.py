"""`--input` of the commands that read data: one file or more, also behind one `--input`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from spark13b.errors import InputError


class ManyInputs(TyperCommand):
    """A command whose `--input` takes all files up to the next option, as in `--input data/*.json --output ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        in_inputs = False
        for at, word in enumerate(args):
            if word == "--":
                spread += args[at:]
                break
            if word.startswith("-") and word != "-":
                in_inputs = word == "--input" or word.startswith("--input=")
            elif in_inputs and spread[-1] != "--input":
                spread.append("--input")
            if in_inputs and word in ("", "--input="):  # as of a variable that is not set; it would be this folder
                raise InputError("--input is given an empty name", fix="name a file or folder; this one is .")
            spread.append(word)
        return super().parse_args(ctx, spread)


Input = Annotated[
    list[Path],
    typer.Option(
        "--input",
        metavar="PATH...",
        help="JSON, JSON Lines, CSV, Parquet or text, also .gz and .zst. Files, folders, patterns.",
        show_default=False,
    ),
]
