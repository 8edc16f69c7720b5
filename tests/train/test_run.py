"""A whole run: what it leaves behind, that it goes on to the last bit, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark13b.ckpt import open_checkpoint
from spark13b.config import load_preset
from spark13b.data.manifest import manifest_path
from spark13b.data.mindrecord import row_info
from spark13b.errors import InputError
from spark13b.progress import Meter, Silent
from spark13b.run_folder import RunFolder, weights_of
from spark13b.train.run import Job, check, train
from train.small_run import GOLDEN, evaluated_preset, small_preset, small_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return small_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    """Some rows to evaluate on."""
    return small_rows(tmp_path_factory.mktemp("held_out"), records=3)


@pytest.fixture(scope="module")
def finished(rows, held_out, tmp_path_factory):
    """A run of six steps, saved after three and six, evaluated after each second step (the loss falls all the time)."""
    output = tmp_path_factory.mktemp("finished") / "run"
    return train(Job(evaluated_preset(), rows, output, eval_data=held_out)), RunFolder(output)


def metrics(run: RunFolder, key: str = "loss") -> list[dict[str, Any]]:
    """The records of a run's steps, or with `eval_loss` of its evaluations."""
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [record for record in records if key in record]


def events(run: RunFolder, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows."""
    import mindspore  # noqa: F401  # before TensorBoard's protobuf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run.tensorboard))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_a_run_folder_has_preset_tokenizer_environment_metrics_events_curve_and_checkpoints(finished, rows):
    result, run = finished
    assert load_preset(run.preset) == evaluated_preset()
    assert (run.tokenizer / "tokenizer.model").read_bytes() == (GOLDEN / "tokenizer" / "tokenizer.model").read_bytes()
    assert run.curve.read_bytes().startswith(b"\x89PNG")
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in run.checkpoints()] == ["step-00000003", "step-00000004", "step-00000006"]
    assert (result.finished, result.steps, result.checkpoint) == (True, 6, run.checkpoint(6))
    assert not [path for path in run.path.rglob("*") if path.name.endswith(".part")]
    (start,) = json.loads(run.environment.read_text())["starts"]
    assert (start["step"], start["device"], start["data"]["path"]) == (0, "cpu", str(rows))
    assert start["data"]["manifest_sha256"] == sha256(manifest_path(rows).read_bytes()).hexdigest()
    assert start["versions"]["mindspore"] == version("mindspore")
    assert start["memory_bytes"] > 2**30


def test_a_record_says_where_the_run_stands_and_how_fast_it_is(finished):
    records = metrics(finished[1])
    assert [(line["tokens"], line["rows_done"], line["skipped_steps"]) for line in records] == [
        (64 * step, 2 * step, 0) for step in range(1, 7)
    ]
    assert records[0]["tokens_per_second"] is None  # MindSpore compiled
    assert all(line["tokens_per_second"] > 0 and 0 < line["mfu"] < 1 for line in records[1:])
    assert all(line["memory_bytes"] > 2**26 for line in records)
    losses = [line["loss"] for line in records]
    assert records[2]["smoothed_loss"] == pytest.approx(0.9 * (0.9 * losses[0] + 0.1 * losses[1]) + 0.1 * losses[2])


def test_tensorboard_shows_the_same_numbers(finished):
    _, run = finished
    for tag, key, records in (
        ("train/loss", "loss", metrics(run)),
        ("train/lr", "lr", metrics(run)),
        ("eval/loss", "eval_loss", metrics(run, "eval_loss")),
        ("eval/accuracy", "eval_accuracy", metrics(run, "eval_loss")),
    ):
        assert events(run, tag) == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in records]


def test_the_best_checkpoint_is_found_by_its_name(finished, held_out):
    result, run = finished
    evaluations = metrics(run, "eval_loss")
    assert [line["step"] for line in evaluations] == [2, 4, 6]
    assert evaluations[0]["eval_loss"] > evaluations[1]["eval_loss"] > evaluations[2]["eval_loss"]
    assert (result.evaluation.loss, result.evaluation.rows) == (evaluations[-1]["eval_loss"], row_info(held_out).rows)
    assert result.best == run.best
    assert run.best.readlink() == Path("step-00000006")
    assert weights_of(run.best) == run.best / "rank_0"
    with open_checkpoint(run.best) as best, open_checkpoint(run.path) as newest:
        assert best.shapes() == newest.shapes()


def test_the_weights_of_a_run_are_complete_and_load_by_the_run_s_folder(finished):
    from spark13b.model.names import expected_shapes

    _, run = finished
    assert weights_of(run.path) == run.checkpoint(6) / "rank_0"
    with open_checkpoint(weights_of(run.path)) as weights:
        assert weights.shapes() == expected_shapes(small_preset().model)
    with open_checkpoint(run.path) as weights:
        assert weights.shapes() == expected_shapes(small_preset().model)


def test_a_run_killed_in_a_step_and_while_saving_goes_on_to_the_last_bit(finished, rows, held_out, tmp_path):
    _, run = finished
    again = RunFolder(tmp_path / "run")
    script = Path(__file__).with_name("killed_run.py")
    for point, number, more in (("step", 5, ()), ("saving", 6, ("resume",))):
        command = [sys.executable, script, rows, held_out, again.path, point, str(number), *more]
        killed = subprocess.run(command, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert again.checkpoints()[-1] == again.checkpoint(4)
    assert list(again.best.parent.glob(".step-00000006.*"))  # what was being written
    with again.metrics.open("a") as file:
        file.write('{"step": 7, "lo')
    train(Job(evaluated_preset(), rows, again.path, resume=True, eval_data=held_out))
    kept = ("step", "loss", "smoothed_loss", "lr", "grad_norm", "tokens", "rows_done")
    assert [[line[key] for key in kept] for line in metrics(again)] == [
        [line[key] for key in kept] for line in metrics(run)
    ]
    assert [(line["step"], line["eval_loss"]) for line in metrics(again, "eval_loss")] == [
        (line["step"], line["eval_loss"]) for line in metrics(run, "eval_loss")
    ]
    for part in ("rank_0", "optimizer.ckpt"):
        with open_checkpoint(run.checkpoint(6) / part) as a, open_checkpoint(again.checkpoint(6) / part) as b:
            assert list(a) == list(b)
            assert all(np.array_equal(a[name], b[name]) for name in a)
    assert sorted(path.name for path in again.best.parent.iterdir()) == [
        *("best", "step-00000003", "step-00000004", "step-00000006")
    ]
    assert [step for step, _ in events(again, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in events(again, "eval/loss")] == [2, 4, 6]
    assert [start["step"] for start in json.loads(again.environment.read_text())["starts"]] == [0, 4, 4]


def test_a_resumed_run_with_another_seed_or_other_rows_is_refused(finished, rows, tmp_path):
    _, run = finished
    with pytest.raises(InputError, match=r"began with another value of train\.seed: 0, now 1"):
        train(Job(small_preset(train__steps=9, train__seed=1), rows, run.path, resume=True))
    other = small_rows(tmp_path, seq_length=16)
    with pytest.raises(InputError, match="another value of the number of rows"):
        train(Job(small_preset(train__steps=9), other, run.path, resume=True))


def test_a_finished_run_has_nothing_to_resume(finished, rows):
    _, run = finished
    for preset in (small_preset(), small_preset(train__steps=None, train__tokens=6 * 64)):
        with pytest.raises(InputError, match="has all its 6 steps"):
            train(Job(preset, rows, run.path, resume=True))


class InterruptedEvaluation(Silent):
    """Ctrl-C as soon as an evaluation begins."""

    @contextmanager
    def track(self, what: str, total: float | None = None, unit: str = "") -> Iterator[Meter]:
        if what == "evaluating":
            os.kill(os.getpid(), signal.SIGINT)
        with super().track(what, total, unit) as meter:
            yield meter


def test_a_signal_ends_an_evaluation_too_and_it_is_made_up_for(rows, held_out, tmp_path):
    run = RunFolder(tmp_path / "run")
    job = Job(small_preset(train__steps=1, schedule__warmup_steps=0), rows, run.path, eval_data=held_out)
    stopped = train(job, InterruptedEvaluation())
    assert (stopped.finished, stopped.steps, stopped.evaluation) == (False, 1, None)
    assert run.checkpoints() == [run.checkpoint(1)]
    assert not run.best.exists()
    done = train(replace(job, resume=True))
    assert (done.finished, done.steps, done.first_loss) == (True, 1, None)
    assert [line["eval_loss"] for line in metrics(run, "eval_loss")] == [done.evaluation.loss]
    assert run.best.readlink() == Path("step-00000001")
    with pytest.raises(InputError, match="has all its 1 steps"):
        train(replace(job, resume=True))


def test_what_cannot_be_trained_is_found_before_a_model_is_made(rows, tmp_path):
    def refused(match: str, **changes: object) -> None:
        with pytest.raises(InputError, match=match):
            train(Job(small_preset(**changes), rows, tmp_path / "run"))
        assert not (tmp_path / "run").exists()

    refused("tokenizer of the rows has 8000 tokens", model__vocab_size=512)
    refused("the rows hold 32 tokens, the model's context 16", model__seq_length=16)
    refused("for answering, not for training", task="infer")
    refused("made for 2 devices", machine__devices=2, parallel__data_parallel=2)
    with pytest.raises(InputError, match="MindSpore sees none here"):
        train(
            Job(
                load_preset(
                    "800T-A2-sft",
                    options={"machine.devices": 1, "parallel.data_parallel": 1, "parallel.model_parallel": 1},
                    assignments=["machine.max_device_memory_gb=null"],
                ),
                rows,
                tmp_path / "run",
            )
        )
    with pytest.raises(InputError, match="no run to resume"):
        train(Job(small_preset(), rows, tmp_path / "run", resume=True))


def test_an_existing_run_is_kept_unless_forced_and_to_go_on_with_it_is_advised_first(finished, rows):
    _, run = finished
    with pytest.raises(InputError, match="already exists") as refused:
        train(Job(small_preset(), rows, run.path))
    assert refused.value.fix.startswith("add --resume to go on with it, or --force to replace it")
    assert run.checkpoints()


def test_force_replaces_runs_and_nothing_else(rows, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError, match="no training run"):
            train(Job(small_preset(), rows, tmp_path, force=force))
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_weights_of_another_shape_are_refused_by_name(finished, rows, tmp_path):
    _, run = finished
    with pytest.raises(InputError, match=r"(?s)of another shape.*embedding_table"):
        train(Job(small_preset(model__hidden_size=64), rows, tmp_path / "run", load=run.path))


def test_the_plan_counts_parameters_steps_and_bytes(rows):
    plan = check(Job(small_preset(), rows, Path("unused")))
    by_hand = 8000 * 32 + (4 * (32 * 32 + 32) + 2 * (32 * 32 + 32) + 32 * 32 + 32 + 4 * 32) + 2 * 32
    assert plan.parameters == by_hand
    assert (plan.memory.weights, plan.memory.optimizer) == (4 * by_hand, 8 * by_hand)
    assert (plan.steps, plan.batch_size, plan.tokens_per_step) == (6, 2, 64)
    by_epochs = check(Job(small_preset(train__steps=None, train__epochs=2), rows, Path("unused")))
    assert by_epochs.steps == -(-2 * plan.rows // 2)
    without_rows = check(Job(small_preset(), None, Path("unused")))
    assert (without_rows.rows, without_rows.steps, without_rows.parameters) == (None, 6, by_hand)


@pytest.mark.parametrize("place", ["", "checkpoints/step-00000006"])
def test_a_new_run_never_replaces_the_weights_that_it_begins_with(finished, rows, place: str) -> None:
    _, run = finished
    before = sorted(run.path.rglob("*"))
    with pytest.raises(InputError, match="the run would replace the weights that it begins with"):
        train(Job(small_preset(), rows, run.path, load=run.path / place, force=True))
    assert sorted(run.path.rglob("*")) == before
