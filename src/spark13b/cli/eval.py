"""`spark13b eval`: measure a model on rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spark13b.cli import console, options
from spark13b.errors import InputError

app = typer.Typer(add_completion=False)


@app.command("eval", epilog="Example: spark13b eval --data held-out.mindrecord --load runs/sft/checkpoints/best")
def evaluate(
    preset: options.Preset = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Rows to measure on: a .mindrecord file of 'spark13b preprocess'.")
    ] = None,
    load: options.Load = None,
    adapter: options.Adapter = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Rows at once \\[default: train.batch_size].")
    ] = None,
    assignments: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Measure a model on rows: loss, perplexity, and how often the right token is the most probable one.

    The preset comes from the run's folder that --load is in, or from --preset. Only tokens to be learned count.
    """
    from spark13b.config import load_preset
    from spark13b.run_folder import run_around
    from spark13b.train.evaluation import evaluate

    if data is None:
        raise InputError("no rows were given", fix="add --data FILE.mindrecord; 'spark13b preprocess' makes it")
    if load is None:
        raise InputError("no model was given", fix="add --load CHECKPOINT")
    run = run_around(load) or (run_around(adapter) if adapter is not None else None)
    if preset is None and run is None:
        raise InputError(
            "no preset was given, and the checkpoint is not in a run's folder",
            where=load,
            fix="add --preset NAME; 'spark13b preset list' shows them",
        )
    values = load_preset(preset or str(run.preset if run else ""), assignments=assignments or [])
    found = evaluate(values, data, load, batch_size, console.TerminalProgress(), adapter)
    if as_json:
        console.print_json(found.as_dict())
    else:
        print(f"{found} ({found.tokens:,} tokens of {found.rows:,} rows)")
