"""`spark13b train`: pretrain or fine-tune from a preset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark13b.cli import console, launching, options
from spark13b.errors import InputError, JobError

if TYPE_CHECKING:
    from spark13b.cluster.launch import Workers
    from spark13b.config import Preset
    from spark13b.train.job import Job

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Example: spark13b train --preset cpu-tiny-sft --data sft.mindrecord --load runs/pretrain --output runs/sft"
)
def train(
    preset: options.Preset = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Training rows: a .mindrecord file of 'spark13b preprocess'.")
    ] = None,
    eval_data: Annotated[
        Path | None,
        typer.Option("--eval-data", help="Rows to evaluate on at the end, and every train.eval_every steps."),
    ] = None,
    load: options.Load = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the run \\[default: runs/PRESET].", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    assignments: options.Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan and stop. Needs no device.")
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
    nproc: launching.Nproc = None,
    nnodes: launching.Nnodes = 1,
    node_rank: launching.NodeRank = None,
    master_addr: launching.MasterAddr = None,
    master_port: launching.MasterPort = None,
    rank_table: launching.RankTable = None,
    hang_timeout: launching.HangTimeout = 1800.0,
) -> None:
    """Train a model: from nothing, or from the weights of --load. Ctrl-C saves and leaves; --resume goes on."""
    start(
        {},
        preset=preset,
        data=data,
        eval_data=eval_data,
        load=load,
        output=output,
        resume=resume,
        assignments=assignments,
        dry_run=dry_run,
        force=force,
        as_json=as_json,
        nproc=nproc,
        nnodes=nnodes,
        node_rank=node_rank,
        master_addr=master_addr,
        master_port=master_port,
        rank_table=rank_table,
        hang_timeout=hang_timeout,
    )


def start(
    fixed: Mapping[str, Any],
    *,
    preset: str | None,
    data: Path | None,
    eval_data: Path | None,
    load: Path | None,
    output: Path | None,
    resume: bool,
    assignments: list[str] | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    **process_options: Any,
) -> None:
    """What 'train' and 'lora' do with their options; `fixed` are the preset's values that the command stands for."""
    from spark13b.train.run import Job, check, train

    if resume and force:  # or --force would do nothing, to somebody who means to begin anew
        raise InputError(
            "--resume goes on with the run in --output, --force replaces it", fix="leave out one of the two"
        )
    processes = launching.Processes(**process_options)

    def job() -> Job:
        values, folder = _preset(preset, resume, output, assignments or [], fixed, processes)
        return Job(values, data, folder, load=load, resume=resume, force=force, eval_data=eval_data)

    if launching.serve_as_worker(lambda me: train(job(), me.progress, me.begin_step).as_dict()):
        return
    asked = job()
    if dry_run:
        from spark13b.cli.plan import show_plan
        from spark13b.train.plan import make_plan

        show_plan(make_plan(asked.preset) if asked.preset.task == "infer" else check(asked), as_json)
        return
    workers = processes.workers(asked.preset)
    if workers is None:
        result = train(asked, console.TerminalProgress()).as_dict()
    else:
        result = _train_together(asked, workers, processes)
    if not result["finished"]:
        raise JobError(
            f"stopped after step {result['steps']}; it is saved",
            where=result["checkpoint"],
            fix="the same command with --resume goes on from there",
        )
    if as_json:
        console.print_json(result)
    else:
        show_result(result)


def _train_together(job: Job, workers: Workers, processes: launching.Processes) -> dict[str, Any]:
    """Check all that can be checked before anything is started, then start the workers; the run's result."""
    from spark13b.model.device import check_driver
    from spark13b.run_folder import RunFolder
    from spark13b.train.claim import Claim
    from spark13b.train.run import check, check_start, no_data

    if job.data is None:
        raise no_data()
    check(job)
    check_driver(job.preset)
    with Claim(job.output) as claim:
        if workers.node == 0:
            check_start(job)
            job.output.mkdir(parents=True, exist_ok=True)
            claim.take()
        return launching.launch(workers, RunFolder(job.output).logs, processes.hang_timeout)


def _preset(
    name: str | None,
    resume: bool,
    output: Path | None,
    assignments: list[str],
    fixed: Mapping[str, Any],
    processes: launching.Processes,
) -> tuple[Preset, Path]:
    """The preset and the run's folder; a resumed run has its own preset."""
    from spark13b.config import load_preset
    from spark13b.run_folder import RunFolder

    if resume and output is None:
        raise InputError("--resume needs the run to go on with", fix="add --output FOLDER")
    if name is None and resume and output is not None:
        if not RunFolder(output).is_run():
            raise InputError("there is no run to resume here", where=output, fix="leave out --resume")
        name = str(RunFolder(output).preset)
    if name is None:
        raise InputError("no preset was given", fix="add --preset NAME; 'spark13b preset list' shows them")
    devices = processes.options(load_preset(name, options=fixed), assignments) if processes.devices else {}
    values = load_preset(name, options={**fixed, **devices}, assignments=assignments)
    stem = Path(name).stem
    if values.task == "lora" and "lora" not in stem:  # or the run would take the folder of its base
        stem += "-lora"
    return values, output or Path("runs", stem)


def show_result(result: Mapping[str, Any]) -> None:
    """Print how a run ended (`Result.as_dict`) to stdout."""
    from spark13b.train.job import Evaluation

    facts = [f"{result['steps']:,} steps"]
    if result["skipped"]:
        facts.append(f"{result['skipped']:,} of them skipped")
    if result["first_loss"] is not None:
        facts.append(f"loss {result['first_loss']:.4f} -> {result['last_loss']:.4f}")
        if result["tokens_per_second"]:  # of one step alone, in which MindSpore compiles, nothing can be said
            facts.append(f"{result['tokens_per_second']:,.0f} tokens/s")
    print(", ".join(facts))
    if result["evaluation"] is not None:
        print(f"evaluation: {Evaluation.from_dict(result['evaluation'])}")
    print(f"run:     {result['output']}")
    print(f"weights: {result['checkpoint']}")
    if result["best"] is not None:
        print(f"best:    {result['best']}")
