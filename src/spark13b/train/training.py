"""The loop around the step: rows in, records, evaluations and checkpoints out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from spark13b.ckpt import open_checkpoint
from spark13b.ckpt.adapters import AdapterCard
from spark13b.errors import InputError, JobError
from spark13b.model.attention.choose import for_training
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.collectives import any_of
from spark13b.model.device import device
from spark13b.model.loss import align
from spark13b.model.mesh import join
from spark13b.model.quantized import TrainedModel
from spark13b.progress import Meter, Progress
from spark13b.run_folder import RunFolder
from spark13b.train import checkpoint
from spark13b.train.checkpoint import RunState
from spark13b.train.environment import memory_now, starts_of
from spark13b.train.evaluation import Evaluator
from spark13b.train.flops import flops_per_token, peak_flops
from spark13b.train.interrupt import interruptible
from spark13b.train.job import Evaluation, Job, Result
from spark13b.train.length import rows_a_step, run_steps
from spark13b.train.lora import load_beside_base
from spark13b.train.loss_scale import LossScale
from spark13b.train.optimizer import corrected
from spark13b.train.order import steps_of_order
from spark13b.train.pace import Pace
from spark13b.train.recorder import NoRecorder, Recorder
from spark13b.train.room import check_room, checkpoint_bytes, new_checkpoints, saves_until
from spark13b.train.rows import RowSource, StepRows, check_rows
from spark13b.train.schedule import learning_rate
from spark13b.train.step import make_setup, make_step

_SMOOTH = 0.9  # of the smoothed loss
_NAMED_ROWS = 40  # of a step that fails; the metrics name all


class Training:
    """One run: its model, optimizer and step, and where it stands. Making it reads weights and writes nothing new.

    `on_step` is called with the number of each step that begins, counted from 1.
    """

    def __init__(
        self, job: Job, data: Path, run: RunFolder, progress: Progress, on_step: Callable[[int], None]
    ) -> None:
        preset = job.preset
        self.job, self.preset, self.run_folder, self.progress, self.on_step = job, preset, run, progress, on_step
        info = check_rows(preset, data)
        self.rows, self.tokens, self.step_rows = info.rows, info.row_length - 1, rows_a_step(preset)
        self.mesh = join(preset.parallel)
        self.first, self.any_of = self.mesh.world.index == 0, any_of(self.mesh)
        going_on = job.resume and bool(run.checkpoints())
        load = job.load if going_on or not job.resume else self._first_load()
        self.card: AdapterCard | None = None  # of a LoRA run
        fresh = load is None and not going_on
        config, setup = for_training(preset.model, device()), make_setup(preset, self.mesh)
        self.model: TrainedModel
        if preset.task == "lora":
            self.model, self.card = load_beside_base(job, load, run, config, setup, progress)
        else:
            self.model = SparkForCausalLM(config, seed=preset.train.seed if fresh else None, setup=setup)
        self.optimizer, self.step = make_step(self.model, preset)
        self.scale = LossScale.of(preset.train)
        self.state = RunState(preset.train.seed, self.rows)
        if going_on:
            self._go_on()
        elif load is not None and self.card is None:
            assert isinstance(self.model, SparkForCausalLM)
            with open_checkpoint(load) as weights:
                self.model.load_state(weights)
                self.optimizer.take_masters(weights)
        self.steps = run_steps(preset, self.rows, self.tokens, self.state.step, self.state.rows_done)
        self.source = RowSource(data, preset.model.vocab_size, self.mesh.data.part(self.step_rows))
        self.evaluator = self._evaluator()
        self.saved_step = self.state.step if going_on else None
        self.evaluation: Evaluation | None = None
        if self.state.step >= self.steps and not self._evaluation_is_due():
            raise InputError(
                f"the run has all its {self.steps} steps already",
                where=run.path,
                fix="raise its length (train.steps, epochs or tokens), or begin another run",
            )

    def check_room(self, *, freed: int) -> None:
        """Raise JobError when the disk has no room for the checkpoints; `freed` bytes go before the first one."""
        train, step = self.preset.train, self.state.step
        there = 0 if freed else len(self.run_folder.checkpoints())
        evaluates = train.eval_every if self.evaluator is not None else None
        judged = evaluates is not None or self.state.best_step is not None
        best = judged and train.save_every is not None  # is kept beside newer ones, which are worse
        saves = saves_until(step, self.steps, train.save_every, evaluates)
        count = new_checkpoints(there, saves, train.keep_checkpoints + best)
        check_room(self.run_folder, checkpoint_bytes(self.model, self.optimizer), count, freed=freed)

    def run(self) -> Result:
        """Train to the end, or until Ctrl-C or SIGTERM."""
        self.progress.note(self.model.describe_training(self.preset.train.batch_size, self.tokens))
        self.peak, self.flops = peak_flops(self.preset), flops_per_token(self.preset, self.tokens)
        self.pace = Pace(self.step_rows * self.tokens)
        self.recorder: Recorder | NoRecorder = (
            Recorder(self.run_folder, self.state.step, self.state.evaluated) if self.first else NoRecorder()
        )
        with interruptible() as wanted_to_stop, self.recorder:
            losses = self._all_steps(wanted_to_stop)
            if self.saved_step != self.state.step:
                self._save()
        best = self.run_folder.best
        tenth = max(1, len(losses) // 10)
        return Result(
            output=self.run_folder.path,
            checkpoint=self.run_folder.checkpoint(self.state.step),
            finished=self.state.step >= self.steps and not self._evaluation_is_due(),
            steps=self.state.step,
            skipped=self.state.skipped,
            first_loss=float(np.mean(losses[:tenth])) if losses else None,
            last_loss=float(np.mean(losses[-tenth:])) if losses else None,
            tokens_per_second=self.pace.overall,
            evaluation=self.evaluation,
            best=best if best.is_symlink() else None,
        )

    def _all_steps(self, wanted_to_stop: Callable[[], bool]) -> list[float]:
        """Step until the end, or until a stop is wanted; the losses."""
        losses: list[float] = []
        if self._evaluation_is_due():  # one that was broken off
            self._evaluate(wanted_to_stop)
        if self.state.step >= self.steps:
            return losses
        self.progress.note("compiling the training step, some seconds")
        with self.progress.track("training", self.steps, "steps") as meter, closing(self._step_rows()) as steps:
            if self.state.step:
                meter.advance(self.state.step)
            began = time.monotonic()
            for rows in steps:
                if self.any_of(wanted_to_stop()):  # all at the same step
                    break
                record = self._take_step(rows)
                self.pace.add(time.monotonic() - began)
                losses.append(record["loss"])
                self._report(record, meter)
                self._save_and_evaluate(wanted_to_stop)
                began = time.monotonic()
        return losses

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any_of(False)

    def _step_rows(self) -> Generator[StepRows, None, None]:
        left = self.steps - self.state.step
        train = self.preset.train
        return self.source.steps(
            steps_of_order(self.rows, self.state.rows_done, left, self.step_rows, train.seed, train.shuffle)
        )

    def _take_step(self, rows: StepRows) -> dict[str, Any]:
        """One step; the record of it. Raises JobError when it is not finite and the loss scale does not explain it."""
        state, preset = self.state, self.preset
        self.on_step(state.step + 1)
        lr = learning_rate(preset.schedule, state.step, self.steps)
        rate, decay = corrected(preset.optimizer, lr, state.updates + 1)
        mask = align(rows.mask, preset.train.loss_mask_alignment)
        loss, norm = self.step(rows.ids, mask, rate, decay, self.scale.value, state.step)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if not finite and not (math.isfinite(loss) and self.scale.explains_overflow):
            raise self._not_finite(loss, norm, rows)
        scale = self.scale.value
        self.scale.update(finite)
        before = state.smoothed_loss
        state.smoothed_loss = loss if before is None else _SMOOTH * before + (1 - _SMOOTH) * loss
        state.step += 1
        state.updates += finite
        state.rows_done += self.step_rows
        state.tokens += self.step_rows * self.tokens
        return {
            "step": state.step,
            "loss": loss,
            "smoothed_loss": state.smoothed_loss,
            "lr": lr,
            "grad_norm": norm,
            "loss_scale": scale,
            "skipped": not finite,
            "skipped_steps": state.skipped,
            "tokens": state.tokens,
            "rows_done": state.rows_done,
        }

    def _report(self, record: dict[str, Any], meter: Meter) -> None:
        """Write the record of a step when it is due, and show it."""
        speed, memory = self.pace.now, memory_now()
        utilisation = speed * self.flops / self.peak if speed and self.peak else None
        if record["step"] in (1, self.steps) or record["step"] % self.preset.train.log_every == 0:
            measured = {"tokens_per_second": speed and round(speed, 1), "mfu": utilisation, "memory_bytes": memory}
            self.recorder.step({**record, **measured, "time": round(time.time(), 3)})
        shown = {
            "loss": f"{record['loss']:.4f}",
            "smoothed": f"{record['smoothed_loss']:.4f}",
            "lr": f"{record['lr']:.2e}",
            "grad norm": f"{record['grad_norm']:.3g}",
            "tokens/s": f"{speed:,.0f}" if speed else "",
            "MFU": f"{utilisation:.0%}" if utilisation else "",
            "memory": f"{memory / 2**30:.2f} GiB",
            "eval": f"{self.evaluation.loss:.4f}" if self.evaluation else "",
            "skipped": f"{self.state.skipped}" if self.state.skipped else "",
        }
        meter.show(**{name: value for name, value in shown.items() if value})
        meter.advance(1)

    def _save_and_evaluate(self, wanted_to_stop: Callable[[], bool]) -> None:
        """What is due after a step. Saved first: an evaluation may take long."""
        every = self.preset.train.save_every
        if self.state.step >= self.steps or (every and self.state.step % every == 0):
            self._save()
        if self._evaluation_is_due():
            self._evaluate(wanted_to_stop)

    def _evaluation_is_due(self) -> bool:
        """Whether this step asks for an evaluation that has not been made."""
        step, every = self.state.step, self.preset.train.eval_every
        due = step >= self.steps or (step > 0 and every is not None and step % every == 0)
        return self.evaluator is not None and due and self.state.evaluated != step

    def _evaluate(self, wanted_to_stop: Callable[[], bool]) -> None:
        """Evaluate, and keep the best checkpoint; a wanted stop leaves it for later."""
        assert self.evaluator is not None
        began = time.monotonic()
        evaluation = self.evaluator.run(wanted_to_stop)
        if evaluation is None:
            return
        state, self.evaluation = self.state, evaluation
        state.evaluated = state.step
        self.recorder.evaluation(state.step, evaluation, time.monotonic() - began)
        better = state.best_loss is None or evaluation.loss < state.best_loss
        if better:
            state.best_step, state.best_loss = state.step, evaluation.loss
        self.progress.note(f"step {state.step}: evaluation {evaluation}{', the best' if better else ''}")
        if better or self.saved_step == state.step:
            self._save()

    def _save(self) -> None:
        """Save where the run stands; a checkpoint that this step has already only learns of its evaluation."""
        state, keep = self.state, self.preset.train.keep_checkpoints
        state.step_rows, state.loss_scale, state.good_steps = self.step_rows, self.scale.value, self.scale.good_steps
        self.recorder.before_checkpoint()
        if self.saved_step != state.step:
            checkpoint.save(self.run_folder, state, self.model, self.optimizer, keep, self.card, self.wait)
            self.saved_step = state.step
        elif self.first:
            checkpoint.amend(self.run_folder, state, keep)

    def _go_on(self) -> None:
        """Take weights, optimizer and position from the run's newest checkpoint."""
        state = checkpoint.restore(self.run_folder, self.model, self.optimizer, self.progress.note)
        assert state is not None
        for what, before, now in (
            ("train.seed", state.seed, self.state.seed),
            ("the number of rows", state.rows, self.state.rows),
        ):
            if before != now:  # the rows would come in another order
                raise InputError(
                    f"the run began with another value of {what}: {before}, now {now}",
                    where=self.run_folder.path,
                    fix="resume with what it began with, or begin a new run with --load",
                )
        self.state = state
        self.scale.value, self.scale.good_steps = state.loss_scale, state.good_steps

    def _first_load(self) -> Path | None:
        """The weights that a run began with which was stopped before its first checkpoint."""
        self.progress.note("note: the run has no checkpoint yet; it begins again")
        starts = starts_of(self.run_folder)
        return self.job.load or (Path(starts[0]["load"]) if starts and starts[0].get("load") else None)

    def _evaluator(self) -> Evaluator | None:
        if self.job.eval_data is None:
            return None
        rows, train = check_rows(self.preset, self.job.eval_data).rows, self.preset.train
        return Evaluator(
            self.model, self.job.eval_data, rows, train.batch_size, train.loss_mask_alignment, self.progress
        )

    def _not_finite(self, loss: float, norm: float, rows: StepRows) -> JobError:
        step, numbers = self.state.step + 1, rows.numbers.tolist()
        what = (
            f"the loss of step {step} is {loss}" if not math.isfinite(loss) else f"a gradient of step {step} is {norm}"
        )
        self.recorder.failure({"step": step, "failure": what, "rows": numbers})
        named = ", ".join(map(str, numbers[:_NAMED_ROWS]))
        more = f" and {len(numbers) - _NAMED_ROWS} more, see metrics.jsonl" if len(numbers) > _NAMED_ROWS else ""
        good = checkpoint.last_good(self.run_folder)
        after = f"the last good checkpoint is {good}" if good else "there is no good checkpoint before it"
        return JobError(
            f"{what}; its batch has the rows {named}{more}; {after}",
            where=self.source.path,
            fix="lower schedule.lr, set optimizer.clip_norm, or look at these rows",
        )
