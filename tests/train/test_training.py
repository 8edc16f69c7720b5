"""The loop around the step, with a step that gives what the test wants: no graph is compiled."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark13b.data.mindrecord import open_rows
from spark13b.data.preprocess import Options, preprocess_sft
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError, JobError
from spark13b.run_folder import RunFolder
from spark13b.train import recorder, training
from spark13b.train.checkpoint import read_state
from spark13b.train.evaluation import Evaluator
from spark13b.train.job import Evaluation, Job
from spark13b.train.order import row_order
from spark13b.train.run import train
from train.small_run import GOLDEN, INSTRUCTIONS, Notes, small_preset, small_rows

NAN, INF = math.nan, math.inf


class Script:
    """Stands for the step: (loss, gradient norm) by step from 1, and what it was called with."""

    def __init__(self) -> None:
        self.gives: dict[int, tuple[float, float]] = {}
        self.ids: list[np.ndarray] = []
        self.scales: list[float] = []
        self.weights: list[np.ndarray] = []

    def __call__(
        self, ids: np.ndarray, mask: np.ndarray, rate: float, decay: float, scale: float, step: int
    ) -> tuple[float, float]:
        self.ids.append(ids)
        self.scales.append(scale)
        return self.gives.get(step + 1, (2.0, 1.0))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return small_rows(tmp_path_factory.mktemp("rows"), records=10)


@pytest.fixture
def script(monkeypatch) -> Script:
    script, make_step = Script(), training.make_step

    def scripted(model: Any, preset: Any) -> tuple[Any, Script]:
        script.weights.append(next(iter(model.weights().values())).asnumpy().copy())
        return make_step(model, preset)[0], script

    monkeypatch.setattr(training, "make_step", scripted)
    monkeypatch.setattr(recorder, "draw_curve", lambda run: run.curve.touch())  # half of the time of these runs
    return script


@pytest.fixture
def evaluations(monkeypatch) -> list[float]:
    """The losses that evaluations find, one after the other."""
    losses: list[float] = []
    monkeypatch.setattr(Evaluator, "run", lambda self, stop: Evaluation(losses.pop(0), 0.5, 10, 2))
    return losses


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def job(rows: Path, run: RunFolder, **changes: Any) -> Job:
    job_changes = {key: changes.pop(key) for key in ("resume", "eval_data", "load") if key in changes}
    preset = small_preset(**{"schedule__warmup_steps": 0, "train__save_every": 1, **changes})
    return Job(preset, rows, run.path, **job_changes)


def records(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def names(run: RunFolder) -> list[int]:
    return [int(path.name[-8:]) for path in run.checkpoints()]


def test_the_newest_checkpoints_and_the_best_are_kept(script, evaluations, rows, run):
    evaluations[:] = [5.0, 3.0, 4.0, 6.0, 3.5, 3.0]
    wanted = job(rows, run, train__eval_every=1, train__keep_checkpoints=2, eval_data=rows)
    result = train(wanted)
    assert names(run) == [2, 5, 6]
    assert (run.best.readlink(), result.best) == (Path("step-00000002"), run.best)
    assert [line["eval_loss"] for line in records(run) if "eval_loss" in line] == [5.0, 3.0, 4.0, 6.0, 3.5, 3.0]
    evaluations[:] = [2.5]
    train(replace(wanted, preset=small_preset(train__steps=7, train__keep_checkpoints=1), resume=True))
    assert (names(run), run.best.readlink()) == ([7], Path("step-00000007"))


def test_an_evaluation_between_checkpoints_saves_when_it_is_the_best(script, evaluations, rows, run):
    evaluations[:] = [3.0, 4.0, 5.0]
    train(job(rows, run, train__save_every=None, train__eval_every=2, eval_data=rows))
    assert names(run) == [2, 6]


def test_without_eval_every_the_end_alone_is_evaluated(script, evaluations, rows, run):
    evaluations[:] = [3.0]
    result = train(job(rows, run, eval_data=rows))
    assert (result.evaluation.loss, evaluations) == (3.0, [])
    notes = Notes()
    train(job(rows, RunFolder(run.path / "other"), train__eval_every=1), notes)
    assert "note: train.eval_every does nothing without --eval-data" in notes.said


def test_rows_in_several_files_are_trained_on_under_the_name_of_all(script, run, tmp_path):
    source, rows = tmp_path / "long.json", tmp_path / "rows.mindrecord"
    source.write_text(json.dumps(json.loads(INSTRUCTIONS.read_text(encoding="utf-8")) * 30), encoding="utf-8")
    options = Options(overlong="split", shard_bytes=1 << 20)
    preprocess_sft([source], rows, SparkTokenizer.load(GOLDEN / "tokenizer"), 512, options=options)
    files = [path for path in rows.parent.glob("rows.mindrecord?") if path.name[-1].isdigit()]
    assert (len(files) > 1, rows.exists()) == (True, False)
    train(job(rows, run, train__steps=1, model__seq_length=512))
    (start,) = json.loads(run.environment.read_text())["starts"]
    assert start["data"]["bytes"] == sum(path.stat().st_size for path in files)
    assert start["data"]["manifest_sha256"] == sha256(Path(f"{rows}.json").read_bytes()).hexdigest()


def test_a_link_to_rows_brings_their_manifest_and_tokenizer(script, rows, run, tmp_path):
    link = tmp_path / "link.mindrecord"
    link.symlink_to(rows)
    train(job(link, run, train__steps=1))
    assert (run.tokenizer / "tokenizer.model").is_file()
    (start,) = json.loads(run.environment.read_text())["starts"]
    assert start["data"]["manifest_sha256"] == sha256(Path(f"{rows}.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_run_that_goes_on_with_another_batch_sees_the_rows_that_come_next(script, rows, run, shuffle):
    train(job(rows, run, train__steps=3, train__shuffle=shuffle))
    total = json.loads((run.checkpoint(3) / "state.json").read_text())["rows"]
    changes: dict[str, Any] = {"train__batch_size": 3, "train__steps": None, "train__epochs": 1}
    result = train(job(rows, run, resume=True, train__shuffle=shuffle, **changes))
    assert result.steps == 3 + math.ceil((total - 6) / 3)
    seen = np.concatenate(script.ids)
    order = np.concatenate(list(row_order(total, 0, len(seen), 0, shuffle)))
    (expected,) = (ids for ids, _ in open_rows(rows, len(seen), order=order))
    assert np.array_equal(seen, expected)
    assert [line["rows_done"] for line in records(run)][:5] == [2, 4, 6, 9, 12]


def test_a_run_of_tokens_ends_with_the_step_that_reaches_them(script, rows, run):
    result = train(job(rows, run, train__steps=None, train__tokens=4 * 64 + 1))
    assert result.steps == 5


@pytest.mark.parametrize("starts", ["[]", '{"starts": 5}', '{"starts": [5]}', '{"starts": [{"data": null}]}', "\0"])
def test_a_run_goes_on_whatever_became_of_what_it_says_of_itself(script, rows, run, starts):
    train(job(rows, run, train__steps=1))
    run.environment.write_text(starts)
    with run.metrics.open("ab") as file:
        file.write(b"\xff\0")
    run.checkpoint(9).touch()  # no folder
    assert train(job(rows, run, resume=True, train__steps=2)).finished
    assert [record["step"] for record in records(run)] == [1, 2]
    assert json.loads(run.environment.read_text())["starts"][-1]["step"] == 1


def test_a_warm_up_that_is_longer_than_the_run_is_noted(script, rows, run):
    notes, endless = Notes(), {"train__steps": None, "schedule__warmup_steps": 5}
    train(job(rows, run, train__tokens=5 * 64, **endless), notes)
    said = "note: the rate warms up for 5 steps, the run has 5: it never reaches schedule.lr; set schedule.warmup_steps"
    assert f"{said} lower" in notes.said
    notes.said.clear()
    train(job(rows, RunFolder(run.path.with_name("longer")), train__tokens=6 * 64, **endless), notes)
    assert not [text for text in notes.said if "warms up" in text]


def test_overflow_under_a_dynamic_scale_is_skipped_and_counted(script, rows, run):
    script.gives = {2: (2.0, INF), 3: (2.0, NAN)}
    result = train(job(rows, run, train__loss_scale="dynamic", train__loss_scale_value=1024.0, train__save_every=4))
    assert (result.steps, result.skipped) == (6, 2)
    assert script.scales == [1024.0, 1024.0, 512.0, 256.0, 256.0, 256.0]
    assert [(line["skipped"], line["skipped_steps"]) for line in records(run)][:4] == [
        *((False, 0), (True, 1), (True, 2), (False, 2))
    ]
    assert records(run)[1]["grad_norm"] is None  # JSON has no inf
    state = json.loads((run.checkpoint(4) / "state.json").read_text())
    assert (state["step"], state["updates"], state["loss_scale"]) == (4, 2, 256.0)


@pytest.mark.parametrize(
    ("gives", "changes", "says"),
    [
        ((NAN, 1.0), {}, "the loss of step 3 is nan"),
        ((INF, INF), {"train__loss_scale": "dynamic"}, "the loss of step 3 is inf"),
        ((2.0, INF), {}, "a gradient of step 3 is inf"),
        ((2.0, INF), {"train__loss_scale": "fixed"}, "a gradient of step 3 is inf"),
        ((2.0, NAN), {"train__loss_scale": "dynamic", "train__loss_scale_value": 1.0}, "a gradient of step 3 is nan"),
    ],
    ids=["loss", "loss-dynamic", "norm", "norm-fixed", "norm-at-scale-1"],
)
def test_what_the_loss_scale_does_not_explain_stops_the_run_with_step_rows_and_checkpoint(
    script, rows, run, gives, changes, says
):
    script.gives = {3: gives}
    with pytest.raises(JobError) as stopped:
        train(job(rows, run, train__save_every=1, **changes))
    state = json.loads((run.checkpoint(2) / "state.json").read_text())
    batch = np.concatenate(list(row_order(state["rows"], 4, 2, 0, True))).tolist()
    assert says in stopped.value.what
    assert f"its batch has the rows {batch[0]}, {batch[1]};" in stopped.value.what
    assert f"the last good checkpoint is {run.checkpoint(2)}" in stopped.value.what
    failure = records(run)[-1]
    assert (failure["step"], failure["failure"], failure["rows"]) == (3, says, batch)
    assert run.curve.exists()


def test_a_run_that_was_stopped_by_a_bad_step_can_go_on(script, rows, run):
    script.gives = {3: (NAN, 1.0)}
    with pytest.raises(JobError):
        train(job(rows, run))
    script.gives = {}
    assert train(job(rows, run, resume=True)).finished
    assert [line["step"] for line in records(run)] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_with_weights_that_are_not_finite_is_no_good_one(script, rows, run, monkeypatch):
    train(job(rows, run, train__steps=2))
    from spark13b.ckpt import open_checkpoint, write_checkpoint
    from spark13b.train.checkpoint import last_good

    with open_checkpoint(run.checkpoint(2)) as weights:
        arrays = {name: np.array(weights[name]) for name in weights}
    next(iter(arrays.values()))[0, 0] = INF
    write_checkpoint(run.checkpoint(2) / "rank_0" / "model.ckpt", arrays, force=True)
    assert last_good(run) == run.checkpoint(1)


def damage_optimizer(folder: Path) -> None:
    file = folder / "optimizer.ckpt"
    file.write_bytes(file.read_bytes()[:-10])


def damage_weights(folder: Path) -> None:
    (folder / "rank_0" / "model.ckpt").unlink()


def damage_state(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 6')


def test_a_damaged_checkpoint_is_passed_over_with_a_note_and_replaced(script, rows, run):
    train(job(rows, run))
    damage_optimizer(run.checkpoint(6))
    damage_weights(run.checkpoint(5))
    notes, script.ids = Notes(), []
    result = train(job(rows, run, resume=True, train__save_every=5), notes)
    assert len(script.ids) == 2
    assert [text.partition(" (")[0] for text in notes.said if "is damaged" in text] == [
        *("note: step-00000006 is damaged", "note: step-00000005 is damaged")
    ]
    assert all(text.endswith("going on from step-00000004") for text in notes.said if "is damaged" in text)
    assert (result.steps, names(run)) == (6, [4, 5, 6])


def test_what_lies_ahead_of_a_run_that_went_back_is_gone_with_its_first_checkpoint(script, rows, run):
    train(job(rows, run))
    for step in (5, 6):
        damage_optimizer(run.checkpoint(step))
    train(job(rows, run, resume=True, train__steps=5, train__save_every=None))
    assert names(run) == [4, 5]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_optimizer, "optimizer.ckpt has .* bytes, not"),
        (damage_weights, "rank_0/model.ckpt is missing"),
        (damage_state, "the run's state cannot be read"),
    ],
)
def test_damage_is_found_without_reading_the_weights(script, rows, run, damage, says):
    train(job(rows, run, train__steps=1))
    damage(run.checkpoint(1))
    with pytest.raises(InputError, match=says):
        read_state(run.checkpoint(1))


def test_when_every_checkpoint_is_damaged_the_newest_is_the_error(script, rows, run):
    train(job(rows, run, train__steps=2))
    for step in (1, 2):
        damage_optimizer(run.checkpoint(step))
    with pytest.raises(InputError, match=r"optimizer\.ckpt has") as refused:
        train(job(rows, run, resume=True))
    assert refused.value.where == str(run.checkpoint(2) / "optimizer.ckpt")
    assert str(refused.value.fix).startswith("no checkpoint of the run is whole")  # deleting this one is no cure
    for step in (1, 2):
        (run.checkpoint(step) / "state.json").unlink()
    with pytest.raises(InputError, match=r"cannot be read: No such file or directory\n"):
        train(job(rows, run, resume=True))


def test_a_run_stopped_before_its_first_checkpoint_begins_again(script, rows, run, tmp_path):
    first = RunFolder(tmp_path / "first")
    train(job(rows, first, train__steps=1, train__seed=5))
    script.gives = {1: (NAN, 1.0)}
    with pytest.raises(JobError, match="there is no good checkpoint before it"):
        train(job(rows, run, load=first.path))
    script.gives = {}
    notes = Notes()
    train(job(rows, run, resume=True), notes)
    assert "note: the run has no checkpoint yet; it begins again" in notes.said
    began = [start["load"] for start in json.loads(run.environment.read_text())["starts"]]
    assert began == [str(first.path), None]
    weights = [(one / "rank_0" / "model.ckpt").read_bytes() for one in (run.checkpoint(6), first.checkpoint(1))]
    assert weights[0] == weights[1]  # the scripted step changes nothing


def test_the_caller_hears_of_every_step_that_begins(script, rows, run):
    steps: list[int] = []
    train(job(rows, run, train__steps=3), on_step=steps.append)
    train(job(rows, run, resume=True, train__steps=5), on_step=steps.append)
    assert steps == [1, 2, 3, 4, 5]


def test_every_log_every_step_is_recorded_and_the_last(script, rows, run) -> None:
    train(job(rows, run, train__log_every=4))
    assert [line["step"] for line in records(run)] == [1, 4, 6]


def test_a_token_that_the_model_does_not_know_is_refused(rows):
    from spark13b.train.rows import RowSource

    with pytest.raises(InputError, match=r"a row holds token id .*the model knows 0 to 9"):
        next(RowSource(rows, 10).steps([np.array([[0, 1]])]))
