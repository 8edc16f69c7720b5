"""A training run from beginning to end: what it needs is checked, its folder made, then it trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from spark13b.ckpt import open_checkpoint
from spark13b.data.mindrecord import read_manifest
from spark13b.errors import InputError, JobError
from spark13b.files import DiskFull, check_writable, disk_error, write_text
from spark13b.model.names import match_names
from spark13b.progress import SILENT, Progress
from spark13b.run_folder import RunFolder, run_around
from spark13b.train.base import rounded_base
from spark13b.train.claim import LOCK, Claim
from spark13b.train.job import Job, Result
from spark13b.train.plan import Plan, make_plan
from spark13b.train.rows import check_rows

__all__ = ["Job", "Result", "check", "check_start", "train"]


def check(job: Job) -> Plan:
    """Find all that would stop the run, without loading a model; the run's plan. Raises InputError.

    Without data it is the plan of rows of full length.
    """
    preset = job.preset
    if preset.task == "infer":
        raise InputError(
            "the preset is for answering, not for training",
            where="task",
            fix="choose another preset; 'spark13b preset list' shows them",
        )
    if job.eval_data is not None:
        check_rows(preset, job.eval_data)
    base = rounded_base(job)
    if preset.task != "lora" and job.load is not None and not _goes_on_alone(job):
        with open_checkpoint(job.load) as weights:
            match_names(weights.shapes(), preset.model, where=weights.path)
    if job.data is None:
        return make_plan(preset, base=base)
    info = check_rows(preset, job.data)
    return make_plan(preset, info.rows, info.row_length, base)


def _goes_on_alone(job: Job) -> bool:
    """Whether a run takes its weights from its own checkpoint, whatever --load says."""
    return job.resume and job.preset.task != "lora" and bool(RunFolder(job.output).checkpoints())


def check_start(job: Job) -> None:
    """Find what stops the run in this output folder. Raises InputError."""
    run = RunFolder(job.output)
    if job.resume and not run.is_run():
        raise InputError("there is no run to resume here", where=job.output, fix="leave out --resume")
    if job.resume:
        _check_same_task(job, run)
    else:
        if job.preset.task == "lora" and job.load is None:
            fix = "add --load BASE: a run's folder or a checkpoint"
            raise InputError("LoRA needs the weights of a base model", fix=fix)
        begun = job.output.is_dir() and not run.is_run()  # empty, or with the logs of workers that came no further
        ours = (run.logs, run.path / LOCK)
        if begun and any(path not in ours for path in job.output.iterdir()):  # --force is for runs alone
            raise InputError(
                "the folder holds something that is no training run", where=job.output, fix="choose another --output"
            )
        if run.is_run() and not job.force:
            fix = "add --resume to go on with it, or --force to replace it; or choose another --output"
            raise InputError("a run already exists here", where=job.output, fix=fix)
        check_writable(job.output, force=job.force or begun)
        if job.load is not None and job.output.exists() and job.load.resolve().is_relative_to(job.output.resolve()):
            raise InputError(
                "the run would replace the weights that it begins with", where=job.load, fix="choose another --output"
            )


def train(job: Job, progress: Progress = SILENT, on_step: Callable[[int], None] = lambda step: None) -> Result:
    """Train, writing checkpoints, metrics and the loss curve into `job.output`.

    `on_step` is called with the number of each step that begins. Raises InputError for what is wrong before the start,
    JobError when the loss is not finite or a row cannot be used.
    """
    if job.data is None:
        raise no_data()
    plan = check(job)
    from spark13b.model.device import check_machine
    from spark13b.model.mesh import processes
    from spark13b.train.environment import record_start
    from spark13b.train.room import size_of
    from spark13b.train.training import Training

    check_machine(job.preset)
    run, alone = RunFolder(job.output), processes() == 1
    with Claim(job.output) as claim:
        if alone:  # else who started them has seen to it, and the first may be at work there
            check_start(job)
            if job.output.is_dir():
                claim.take()
        for note in _notes(job, plan):
            progress.note(f"note: {note}")
        training = Training(job, job.data, run, progress, on_step)  # reads weights: nothing is written before they fit
        if training.mesh.world.index == 0:
            training.check_room(freed=size_of(run) if run.is_run() and not job.resume else 0)
            if job.resume:
                write_text(run.preset, job.preset.to_yaml(), force=True)  # --set may have changed it
            else:
                run.path.mkdir(parents=True, exist_ok=True)
                if alone:
                    claim.take()
                    check_start(job)  # another run may have come and gone while the weights were read
                tokenizer = _tokenizer(job, job.data)
                if tokenizer is None:
                    progress.note("note: the tokenizer of the rows is not here; answers of this run need --tokenizer")
                _prepare(job, tokenizer, run)
            record_start(run, job, training.state.step)
        training.wait()
        if not run.is_run():
            raise JobError(
                "this machine does not see the folder that the first one has made for the run",
                where=run.path,
                fix="choose an --output that all machines share",
            )
        with _told_to_resume(run):
            return training.run()


def _notes(job: Job, plan: Plan) -> Iterator[str]:
    """What the run can do with, but its user may not want."""
    from spark13b.train.environment import same_rows, starts_of

    preset, run = job.preset, RunFolder(job.output)
    if preset.train.eval_every is not None and job.eval_data is None:
        yield "train.eval_every does nothing without --eval-data"
    warm_up, total = preset.schedule.warmup_steps, preset.schedule.total_steps
    if total is None and plan.steps is not None and warm_up >= plan.steps:
        yield (
            f"the rate warms up for {warm_up} steps, the run has {plan.steps}: it never reaches schedule.lr; "
            "set schedule.warmup_steps lower"
        )
    if preset.task == "sft" and job.load is None and not job.resume:
        yield "fine-tuning begins with random weights; --load takes those of a model"
    if job.load is not None and _goes_on_alone(job):
        yield "--load is not read: the run goes on with the weights of its own checkpoint"
    before = starts_of(run)[-1:] if job.resume else []
    if before and job.data is not None and not same_rows(before[0], job.data):
        yield "the rows have another manifest than those of the run's last start; it goes on at the same numbers"


@contextmanager
def _told_to_resume(run: RunFolder) -> Iterator[None]:
    """A full disk ends a run that has begun: it goes on with --resume, the same command would begin another one."""
    try:
        yield
    except OSError as error:
        shown = disk_error(error, run.metrics)
        if not isinstance(shown, DiskFull):
            raise
        raise DiskFull(shown.what, where=run.path, fix=_ROOM) from error
    except DiskFull as error:
        raise DiskFull(error.what, where=run.path, fix=_ROOM) from error


_ROOM = "free some space; with --resume the run goes on from its newest checkpoint"


def _check_same_task(job: Job, run: RunFolder) -> None:
    """Adapters cannot go on as weights, nor weights as adapters."""
    from spark13b.config import load_preset

    with_adapters = load_preset(run.preset).task == "lora"
    if with_adapters != (job.preset.task == "lora"):
        what, command = ("adapters", "lora") if with_adapters else ("all weights", "train")
        fix = f"go on with 'spark13b {command} --resume', or begin a new run"
        raise InputError(f"this run trains {what}", where=run.path, fix=fix)


def _prepare(job: Job, tokenizer: bytes | None, run: RunFolder) -> None:
    """Fill the run's folder, with preset and tokenizer."""
    for old in run.path.iterdir():
        if old in (run.logs, run.path / LOCK):  # of this very run
            continue
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    if tokenizer is not None:
        run.tokenizer.mkdir()
        (run.tokenizer / "tokenizer.model").write_bytes(tokenizer)
    write_text(run.preset, job.preset.to_yaml())  # last: it makes the folder a run


def _tokenizer(job: Job, data: Path) -> bytes | None:
    """The tokenizer that made the rows, where their manifest says or beside the weights of --load; None: in neither."""
    manifest, load = read_manifest(data), job.load and run_around(job.load)
    if manifest is None:
        return None
    for folder in (Path(manifest.tokenizer.path), *([load.tokenizer] if load else [])):
        model = folder / "tokenizer.model" if folder.is_dir() else folder
        if model.is_file():
            content = model.read_bytes()
            if sha256(content).hexdigest() == manifest.tokenizer.sha256:
                return content
    return None


def no_data() -> InputError:
    return InputError("no training rows were given", fix="add --data FILE.mindrecord; 'spark13b preprocess' makes it")
