"""A training run from beginning to end, in one process."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from spark13b.config.preset import Preset
from spark13b.data.mindrecord import open_rows, read_manifest, row_info
from spark13b.errors import InputError, JobError
from spark13b.files import check_writable, write_text
from spark13b.progress import SILENT, Progress
from spark13b.run_folder import RunFolder
from spark13b.train.interrupt import interruptible
from spark13b.train.loss_scale import LossScale
from spark13b.train.order import steps_of_order
from spark13b.train.plan import Plan, make_plan
from spark13b.train.schedule import learning_rate

_SMOOTH = 0.9  # of the smoothed loss that is shown


@dataclass(frozen=True)
class Job:
    """What to train on what. `load`: weights to begin with; `resume`: go on in `output`; `force`: replace it."""

    preset: Preset
    data: Path
    output: Path
    load: Path | None = None
    resume: bool = False
    force: bool = False


@dataclass(frozen=True)
class Result:
    """How a run ended. `finished` is False when it was interrupted; it can be resumed then."""

    output: Path
    checkpoint: Path
    finished: bool
    steps: int
    first_loss: float
    last_loss: float  # means over the first and last tenth of the steps of this call
    tokens_per_second: float


def check(job: Job) -> Plan:
    """Find all that would stop the run, without loading a model; the run's plan. Raises InputError."""
    preset = job.preset
    if preset.task not in ("pretrain", "sft"):
        raise InputError(
            f"'train' is for pretrain and sft, the preset is for {preset.task}",
            where="task",
            fix="choose another preset; 'spark13b preset list' shows them",
        )
    info = row_info(job.data)
    manifest = read_manifest(job.data)
    if manifest is not None and manifest.tokenizer.vocab_size > preset.model.vocab_size:
        size = manifest.tokenizer.vocab_size
        raise InputError(
            f"the tokenizer of the rows has {size} tokens, the model knows {preset.model.vocab_size}",
            where="model.vocab_size",
            fix=f"add --set model.vocab_size={size}",
        )
    return make_plan(preset, info.rows, info.row_length)


def check_start(job: Job) -> None:
    """Find what stops the run on this machine and in this output folder. Raises InputError."""
    from spark13b.model.device import check_machine

    check_machine(job.preset)
    run = RunFolder(job.output)
    if job.resume and not run.is_run():
        raise InputError("there is no run to resume here", where=job.output, fix="leave out --resume")
    if not job.resume:
        if job.output.is_dir() and not run.is_run() and any(job.output.iterdir()):  # --force is for runs alone
            raise InputError(
                "the folder holds something that is no training run", where=job.output, fix="choose another --output"
            )
        check_writable(job.output, force=job.force)


def train(job: Job, progress: Progress = SILENT) -> Result:
    """Train, writing checkpoints, metrics and the loss curve into `job.output`.

    Raises InputError for what is wrong before the start, JobError when the loss is not finite or a row cannot be used.
    """
    plan = check(job)
    check_start(job)
    run = RunFolder(job.output)
    training = _Training(job, run, plan, progress)  # reads the weights: nothing is written before they fit
    if job.resume:
        write_text(run.preset, job.preset.to_yaml(), force=True)  # --set may have changed it
    else:
        _prepare(job, run)
    return training.run()


def _prepare(job: Job, run: RunFolder) -> None:
    """Make the run's folder, with preset and tokenizer."""
    if run.path.is_dir():
        shutil.rmtree(run.path)
    run.path.mkdir(parents=True)
    manifest = read_manifest(job.data)
    if manifest is not None:
        from spark13b.data.tokenizer import SparkTokenizer

        model = Path(manifest.tokenizer.path)
        if model.exists() and SparkTokenizer.load(model).fingerprint == manifest.tokenizer.sha256:
            run.tokenizer.mkdir()
            source = model / "tokenizer.model" if model.is_dir() else model
            shutil.copyfile(source, run.tokenizer / "tokenizer.model")
    write_text(run.preset, job.preset.to_yaml())  # last: it makes the folder a run


class _Training:
    """The moving parts of one run."""

    def __init__(self, job: Job, run: RunFolder, plan: Plan, progress: Progress) -> None:
        from spark13b.ckpt import open_checkpoint
        from spark13b.model.causal_lm import SparkForCausalLM
        from spark13b.train import checkpoint
        from spark13b.train.optimizer import AdamW
        from spark13b.train.step import TrainStep

        preset = job.preset
        self.job, self.run_folder, self.plan, self.progress = job, run, plan, progress
        fresh = job.load is None and not job.resume
        self.model = SparkForCausalLM(preset.model, seed=preset.train.seed if fresh else None)
        if preset.train.recompute:
            self.model.recompute_layers()
        parameters = list(self.model.weights().values())
        self.optimizer = AdamW(parameters, preset.optimizer)
        self.scale = LossScale.of(preset.train)
        self.step_number = self.updates = self.tokens = 0
        if job.resume:
            state = checkpoint.restore(checkpoint.newest(run), self.model, self.optimizer)
            self._check_same_run(state)
            self.step_number, self.updates, self.tokens = state.step, state.updates, state.tokens
            self.scale.value, self.scale.good_steps = state.loss_scale, state.good_steps
        elif job.load is not None:
            with open_checkpoint(job.load) as weights:
                self.model.load_state(weights)
        self.step = TrainStep(
            self.model, parameters, self.optimizer, preset.optimizer.clip_norm, guard=self.scale.dynamic
        )

    def run(self) -> Result:
        if self.step_number >= self.plan.steps:
            raise InputError(
                f"the run has all its {self.plan.steps} steps already",
                where=self.run_folder.path,
                fix="raise train.steps, or begin another run",
            )
        choice = self.model.attention_choice(self.plan.batch_size, self.plan.tokens)
        self.progress.note(f"attention: {choice.backend} ({choice.reason})")
        with interruptible() as wanted_to_stop, self._metrics() as metrics:
            losses, speed = self._all_steps(metrics, wanted_to_stop)
            saved = self._save()
        draw_curve(self.run_folder)
        tenth = max(1, len(losses) // 10)
        return Result(
            output=self.run_folder.path,
            checkpoint=saved,
            finished=self.step_number >= self.plan.steps,
            steps=self.step_number,
            first_loss=float(np.mean(losses[:tenth])),
            last_loss=float(np.mean(losses[-tenth:])),
            tokens_per_second=speed,
        )

    def _all_steps(self, metrics: IO[str], wanted_to_stop: Callable[[], bool]) -> tuple[list[float], float]:
        """Step until the end, or until a stop is wanted; the losses and the speed in tokens a second."""
        batches = self._batches()
        self.progress.note("compiling the training step, some seconds")
        losses = [self._log(self._take_step(*next(batches)), metrics, None)]  # its time is the compiler's
        began, smoothed, speed = time.monotonic(), losses[0], 0.0
        every = self.job.preset.train.save_every
        with self.progress.track("training", self.plan.steps - self.step_number, "steps") as meter:
            for ids, mask in batches:
                if wanted_to_stop():
                    break
                if every and self.step_number % every == 0:
                    self._save()
                record = self._take_step(ids, mask)
                speed = len(losses) * self.plan.tokens_per_step / (time.monotonic() - began)
                losses.append(self._log(record, metrics, speed))
                smoothed = _SMOOTH * smoothed + (1 - _SMOOTH) * losses[-1]
                meter.show(**{"loss": f"{smoothed:.4f}", "lr": f"{record['lr']:.2e}", "tokens/s": f"{speed:,.0f}"})
                meter.advance(1)
        batches.close()
        return losses, speed

    def _log(self, record: dict[str, Any], metrics: IO[str], speed: float | None) -> float:
        """Write the record of a step to the metrics, when it is due; its loss."""
        step = record["step"]
        if step in (1, self.plan.steps) or step % self.job.preset.train.log_every == 0:
            metrics.write(json.dumps({**record, "tokens_per_second": speed and round(speed, 1)}) + "\n")
            metrics.flush()
        return float(record["loss"])

    def _take_step(self, ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        """One step on a batch (B, T+1); the record for the metrics."""
        from mindspore import Tensor

        from spark13b.model.loss import align
        from spark13b.train.optimizer import corrected

        preset = self.job.preset
        self._check_ids(ids)
        lr = learning_rate(preset.schedule, self.step_number, self.plan.steps)
        rate, decay = corrected(preset.optimizer, lr, self.updates + 1)
        target_mask = align(mask, preset.train.loss_mask_alignment)
        loss, norm = self.step(
            *(Tensor(np.ascontiguousarray(array)) for array in (ids[:, :-1], ids[:, 1:], target_mask)),
            *(Tensor(np.float32(number)) for number in (rate, decay, self.scale.value)),
        )
        loss_value, norm_value = float(loss.asnumpy()), float(norm.asnumpy())
        finite = math.isfinite(loss_value) and math.isfinite(norm_value)
        if not finite and not self.scale.dynamic:
            raise self._not_finite(loss_value)
        record = {
            "step": self.step_number + 1,
            "loss": loss_value,
            "lr": lr,
            "grad_norm": norm_value,
            "loss_scale": self.scale.value,
            "skipped": not finite,
        }
        self.scale.update(finite)
        self.step_number += 1
        self.updates += finite
        self.tokens += self.plan.tokens_per_step
        return record

    def _batches(self) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        preset = self.job.preset
        orders = steps_of_order(
            self.plan.rows,
            self.step_number * self.plan.batch_size,
            self.plan.steps - self.step_number,
            self.plan.batch_size,
            preset.train.seed,
            preset.train.shuffle,
        )
        for order in orders:
            yield from open_rows(self.job.data, self.plan.batch_size, order=order.ravel())

    def _metrics(self) -> IO[str]:
        """The metrics file, cut back to the step that the run goes on from."""
        path = self.run_folder.metrics
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= self.step_number:
                        kept.append(line + "\n")
                except (ValueError, KeyError):
                    break  # the last line of a killed run
        write_text(path, "".join(kept), force=True)
        return path.open("a", encoding="utf-8")

    def _save(self) -> Path:
        from spark13b.train import checkpoint

        state = checkpoint.RunState(
            step=self.step_number,
            updates=self.updates,
            tokens=self.tokens,
            loss_scale=self.scale.value,
            good_steps=self.scale.good_steps,
            seed=self.job.preset.train.seed,
            rows=self.plan.rows,
            batch_size=self.plan.batch_size,
        )
        keep = self.job.preset.train.keep_checkpoints
        return checkpoint.save(self.run_folder, state, self.model, self.optimizer, keep)

    def _check_same_run(self, state: Any) -> None:
        """A resumed run must see the rows in the order it would have seen them."""
        now = {
            "train.seed": (state.seed, self.job.preset.train.seed),
            "train.batch_size": (state.batch_size, self.plan.batch_size),
            "the number of rows": (state.rows, self.plan.rows),
        }
        for what, (before, after) in now.items():
            if before != after:
                raise InputError(
                    f"the run began with another value of {what}: {before}, now {after}",
                    where=self.run_folder.path,
                    fix="resume with what it began with, or begin a new run with --load",
                )

    def _check_ids(self, ids: np.ndarray) -> None:
        largest = int(ids.max())
        if largest >= self.job.preset.model.vocab_size or int(ids.min()) < 0:
            raise InputError(
                f"a row holds token id {largest if largest > 0 else int(ids.min())}, the model knows 0 to "
                f"{self.job.preset.model.vocab_size - 1}",
                where=self.job.data,
                fix="train with the vocabulary size of the tokenizer that made the rows (--set model.vocab_size=...)",
            )

    def _not_finite(self, loss: float) -> JobError:
        saved = self.run_folder.checkpoints()
        where = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint before it"
        batch = self.plan.batch_size
        first = self.step_number * batch
        return JobError(
            f"the loss of step {self.step_number + 1} is {loss}, or a gradient is not finite "
            f"(positions {first} to {first + batch - 1} of the row order); {where}",
            where=self.job.data,
            fix="lower schedule.lr, set optimizer.clip_norm, or look at these rows",
        )


def draw_curve(run: RunFolder) -> None:
    """Draw the loss of every step into the run's loss.png."""
    from spark13b.train.curve import draw

    points = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    draw([point["step"] for point in points], [point["loss"] for point in points], run.curve)
