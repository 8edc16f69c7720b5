"""One spelling for one thing in all commands: the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Preset = Annotated[
    str | None, typer.Option("--preset", "-p", help="A preset's name (see 'spark13b preset list') or a YAML file.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one preset value: --set model.seq_length=4096. Repeatable; wins over the rest."),
]
Load = Annotated[
    Path | None, typer.Option("--load", help="Weights: a run's folder, a checkpoint file, or a folder with rank_0/.")
]
Adapter = Annotated[
    Path | None,
    typer.Option("--adapter", help="LoRA adapters beside --load: adapters.safetensors, or a LoRA run's folder."),
]
Tokenizer = Annotated[Path | None, typer.Option("--tokenizer", help="Folder that holds tokenizer.model.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
