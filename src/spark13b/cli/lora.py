"""`spark13b lora`: train adapters. Its options are those of `spark13b train`."""

from __future__ import annotations

import inspect
from typing import Any

import typer

from spark13b.cli.train import start, train

app = typer.Typer(add_completion=False)


def lora(**given: Any) -> None:
    """Train LoRA adapters beside the weights of --load, which stay as they are. Only the adapters are saved.

    Any preset for training will do: its lora section says rank, alpha, dropout and targets.
    """
    start({"task": "lora"}, **given)


# typer reads the options from these two
lora.__signature__ = inspect.signature(train, eval_str=True)  # type: ignore[attr-defined]
lora.__annotations__ = inspect.get_annotations(train, eval_str=True)

app.command(
    epilog="Example: spark13b lora --preset cpu-tiny-lora --data sft.mindrecord --load runs/sft --output runs/lora"
)(lora)
