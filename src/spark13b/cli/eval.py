"""`spark13b eval`: measure a model on rows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark13b.cli import console, launching, options
from spark13b.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from spark13b.cluster.launch import Workers
    from spark13b.config import Preset

app = typer.Typer(add_completion=False)


@app.command("eval", epilog="Example: spark13b eval --data held-out.mindrecord --load runs/sft/checkpoints/best")
def evaluate(
    preset: options.Preset = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Rows to measure on: a .mindrecord file of 'spark13b preprocess'.")
    ] = None,
    load: options.Load = None,
    adapter: options.Adapter = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="CHECKPOINT",
            help="Another one of the same model, from before 'ckpt quantize' for example: compare the two.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Rows at once \\[default: train.batch_size].")
    ] = None,
    assignments: options.Set = None,
    as_json: options.Json = False,
    nproc: launching.Nproc = None,
    nnodes: launching.Nnodes = 1,
    node_rank: launching.NodeRank = None,
    master_addr: launching.MasterAddr = None,
    master_port: launching.MasterPort = None,
    rank_table: launching.RankTable = None,
    hang_timeout: launching.HangTimeout = 1800.0,
) -> None:
    """Measure a model on rows: loss, perplexity, and how often the right token is the most probable one.

    The preset comes from the run's folder that --load is in, or from --preset. Only tokens to be learned count.
    With --against both models are measured, and how often they hold the same token for the most probable one.
    """
    if against is not None:
        if adapter is not None or nproc is not None:
            raise InputError("--against goes with neither --adapter nor --nproc", fix="leave --adapter and --nproc out")
        _compare(preset, *_given(data, load), against, assignments or [], as_json)
        return
    from spark13b.train.evaluation import evaluate
    from spark13b.train.job import Evaluation

    processes = launching.Processes(nproc, nnodes, node_rank, master_addr, master_port, rank_table, hang_timeout)

    def asked() -> tuple[Preset, Path, Path]:
        rows, weights = _given(data, load)
        return _preset(preset, weights, adapter, assignments or [], processes), rows, weights

    if launching.serve_as_worker(lambda me: evaluate(*asked(), batch_size, me.progress, adapter).as_dict()):
        return
    values, rows, weights = asked()
    workers = processes.workers(values)
    if workers is None:
        result = evaluate(values, rows, weights, batch_size, console.TerminalProgress(), adapter).as_dict()
    else:
        result = _evaluate_together(values, rows, workers, processes)
    if as_json:
        console.print_json(result)
    else:
        found = Evaluation.from_dict(result)
        print(f"{found} ({found.tokens:,} tokens of {found.rows:,} rows)")


def _compare(preset: str | None, data: Path, load: Path, against: Path, assignments: list[str], as_json: bool) -> None:
    """Print how two models differ on rows."""
    from spark13b.config import load_preset
    from spark13b.data.mindrecord import open_rows
    from spark13b.infer.comparison import compare
    from spark13b.model.loss import align
    from spark13b.run_folder import preset_for
    from spark13b.train.rows import check_rows

    try:
        name, _ = preset_for(preset, load, None)
    except InputError:  # what 'ckpt quantize' wrote does not lie in a run's folder, and its source may
        name, _ = preset_for(preset, against, None)
    values = load_preset(name, assignments=assignments)
    info = check_rows(values, data)
    with console.TerminalProgress().track("comparing", info.rows, "rows") as meter:

        def rows() -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
            for ids, mask in open_rows(data, 1):
                yield ids[0], align(mask, values.train.loss_mask_alignment)[0]
                meter.advance(1)

        result = compare(load, against, values.model, rows())
    if as_json:
        console.print_json(result.as_dict())
    else:
        print(f"{result} ({result.tokens:,} tokens of {info.rows:,} rows)")


def _evaluate_together(values: Preset, rows: Path, workers: Workers, processes: launching.Processes) -> dict[str, Any]:
    """Check what can be checked before anything is started, then start the workers."""
    import tempfile

    from spark13b.model.device import check_driver
    from spark13b.train.rows import check_rows

    check_rows(values, rows)
    check_driver(values)
    logs = Path(tempfile.mkdtemp(prefix="spark13b-eval-"))  # stays when a worker fails: the error names it
    result = launching.launch(workers, logs, processes.hang_timeout)
    shutil.rmtree(logs)
    return result


def _given(data: Path | None, load: Path | None) -> tuple[Path, Path]:
    if data is None:
        raise InputError("no rows were given", fix="add --data FILE.mindrecord; 'spark13b preprocess' makes it")
    if load is None:
        raise InputError("no model was given", fix="add --load CHECKPOINT")
    return data, load


def _preset(
    preset: str | None, load: Path, adapter: Path | None, assignments: list[str], processes: launching.Processes
) -> Preset:
    """The preset that was named, else that of the run around the weights or the adapters."""
    from spark13b.config import load_preset
    from spark13b.run_folder import preset_for

    name, _ = preset_for(preset, load, adapter)
    devices = processes.options(load_preset(name), assignments) if processes.devices else {}
    return load_preset(name, options=devices, assignments=assignments)
