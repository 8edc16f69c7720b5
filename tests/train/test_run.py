"""A whole run: what it leaves behind, that it goes on to the last bit, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from spark13b.ckpt import open_checkpoint
from spark13b.config import load_preset
from spark13b.errors import InputError, JobError
from spark13b.run_folder import RunFolder, weights_of
from spark13b.train.run import Job, check, train
from train.small_run import GOLDEN, small_preset, small_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return small_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def finished(rows, tmp_path_factory):
    """A run of six steps, saved after three and six."""
    output = tmp_path_factory.mktemp("finished") / "run"
    return train(Job(small_preset(), rows, output)), RunFolder(output)


def metrics(run: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_a_run_folder_has_preset_tokenizer_metrics_curve_and_checkpoints(finished):
    result, run = finished
    assert load_preset(run.preset) == small_preset()
    assert (run.tokenizer / "tokenizer.model").read_bytes() == (GOLDEN / "tokenizer" / "tokenizer.model").read_bytes()
    assert run.curve.read_bytes().startswith(b"\x89PNG")
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in run.checkpoints()] == ["step-00000003", "step-00000006"]
    assert (result.finished, result.steps, result.checkpoint) == (True, 6, run.checkpoint(6))
    assert not [path for path in run.path.rglob("*") if path.name.endswith(".part")]


def test_the_weights_of_a_run_are_complete_and_load_by_the_run_s_folder(finished):
    from spark13b.model.names import expected_shapes

    _, run = finished
    assert weights_of(run.path) == run.checkpoint(6) / "rank_0"
    with open_checkpoint(weights_of(run.path)) as weights:
        assert weights.shapes() == expected_shapes(small_preset().model)
    with open_checkpoint(run.path) as weights:
        assert weights.shapes() == expected_shapes(small_preset().model)


def test_a_resumed_run_has_the_same_losses_and_weights_to_the_last_bit(finished, rows, tmp_path):
    _, run = finished
    again = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, again.path)
    shutil.rmtree(again.checkpoint(6))
    with again.metrics.open("a") as file:
        file.write('{"step": 7, "lo')  # as kill -9 leaves it
    train(Job(small_preset(), rows, again.path, resume=True))
    kept = ("step", "loss", "lr", "grad_norm")
    assert [[line[key] for key in kept] for line in metrics(again)] == [
        [line[key] for key in kept] for line in metrics(run)
    ]
    for part in ("rank_0", "optimizer.ckpt"):
        with open_checkpoint(run.checkpoint(6) / part) as a, open_checkpoint(again.checkpoint(6) / part) as b:
            assert list(a) == list(b)
            assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_resumed_run_with_another_seed_or_batch_is_refused(finished, rows):
    _, run = finished
    for change in ({"train__seed": 1}, {"train__batch_size": 4}):
        preset = small_preset(train__steps=9, **change)
        with pytest.raises(InputError, match="began with another value of train"):
            train(Job(preset, rows, run.path, resume=True))


def test_a_finished_run_has_nothing_to_resume(finished, rows):
    _, run = finished
    with pytest.raises(InputError, match="has all its 6 steps"):
        train(Job(small_preset(), rows, run.path, resume=True))


def test_a_signal_ends_the_step_saves_and_leaves(rows, tmp_path):
    run = RunFolder(tmp_path / "run")

    def interrupt_after_the_first_step() -> None:
        while not (run.metrics.exists() and run.metrics.read_text().count("\n")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_after_the_first_step, daemon=True).start()
    result = train(Job(small_preset(train__steps=100000, train__save_every=None), rows, run.path))
    assert not result.finished
    assert run.checkpoints() == [run.checkpoint(result.steps)]
    assert len(metrics(run)) == result.steps


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_checkpoint(rows, tmp_path):
    preset = small_preset(schedule__kind="constant", schedule__lr=1e30, train__save_every=1, train__keep_checkpoints=9)
    with pytest.raises(JobError, match=r"the loss of step \d+ is (nan|inf).*checkpoint"):
        train(Job(preset, rows, tmp_path / "run"))


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
                ),
                rows,
                tmp_path / "run",
            )
        )
    with pytest.raises(InputError, match="no run to resume"):
        train(Job(small_preset(), rows, tmp_path / "run", resume=True))


def test_an_existing_output_is_kept_unless_forced(rows, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="already exists"):
        train(Job(small_preset(), rows, tmp_path / "run"))


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
    assert (plan.weights_bytes, plan.optimizer_bytes) == (4 * by_hand, 8 * by_hand)
    assert (plan.steps, plan.batch_size, plan.tokens_per_step) == (6, 2, 64)
    by_epochs = check(Job(small_preset(train__steps=None, train__epochs=2), rows, Path("unused")))
    assert by_epochs.steps == -(-2 * plan.rows // 2)
