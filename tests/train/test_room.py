"""The room on the disk that a run's checkpoints take, and a disk that is full all the same; no graph is compiled."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spark13b.errors import InputError, JobError
from spark13b.run_folder import RunFolder
from spark13b.train import checkpoint, recorder, training
from spark13b.train.claim import LOCK, Claim
from spark13b.train.job import Evaluation
from spark13b.train.room import new_checkpoints, saves_until
from spark13b.train.run import Job, check, train
from train.small_run import GOLDEN, Notes, small_preset, small_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return small_rows(tmp_path_factory.mktemp("rows"), records=10)


@pytest.fixture
def job(tmp_path, rows, monkeypatch) -> Callable[..., Job]:
    """A run whose steps do nothing, and who runs it."""
    make_step = training.make_step
    monkeypatch.setattr(
        training, "make_step", lambda model, preset: (make_step(model, preset)[0], lambda *values: (2.0, 1.0))
    )
    monkeypatch.setattr(recorder, "draw_curve", lambda run: run.curve.touch())

    def made(resume: bool = False, force: bool = False, load: Path | None = None, **changes: int) -> Job:
        preset = small_preset(**{"schedule__warmup_steps": 0, "train__save_every": 1, **changes})
        return Job(preset, rows, tmp_path / "run", resume=resume, force=force, load=load)

    return made


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("step", "steps", "every", "saves"),
    [(0, 6, None, 1), (0, 6, 2, 3), (0, 7, 2, 4), (3, 7, 2, 3), (4, 7, 2, 2), (0, 3, 5, 1), (6, 7, 7, 1)],
)
def test_a_run_saves_at_every_so_many_steps_and_at_the_end(step, steps, every, saves):
    moments = {one for one in range(step + 1, steps + 1) if one == steps or (every and one % every == 0)}
    assert saves_until(step, steps, every) == saves == len(moments)


@pytest.mark.parametrize("step", [0, 3, 4, 6])
@pytest.mark.parametrize("every", [(None, 2), (2, 2), (2, 3), (4, 6), (3, 7), (6, None)])
def test_an_evaluation_may_save_once_more(step, every):
    moments = {one for one in range(step + 1, 14) if one == 13 or any(period and one % period == 0 for period in every)}
    assert saves_until(step, 13, *every) == len(moments)


@pytest.mark.parametrize("there", [0, 1, 3, 5])
@pytest.mark.parametrize("saves", [1, 2, 9])
@pytest.mark.parametrize("keep", [1, 3])
def test_a_new_checkpoint_lies_there_before_the_oldest_goes(there, saves, keep):
    folders, most = there, 0
    for _ in range(saves):
        most = max(most, folders + 1 - there)
        folders = min(keep, folders + 1)
    assert new_checkpoints(there, saves, keep) == most


def test_checkpoints_that_the_disk_has_no_room_for_are_refused_before_the_first_step(job, tmp_path, monkeypatch):
    train(job(train__steps=1))
    size = sizes(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)

    def disk_with(free: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(free * size)))

    disk_with(3.9)
    with pytest.raises(JobError, match=r"not enough room for the run's checkpoints: 4 x \d+\.\d MB") as caught:
        train(job())
    assert "train.keep_checkpoints" in str(caught.value.fix)
    assert not (tmp_path / "run").exists()
    train(job(train__keep_checkpoints=2))
    disk_with(1.9)
    with pytest.raises(JobError, match="2 x "):  # besides the two that are there
        train(job(resume=True, train__steps=9))
    with pytest.raises(JobError, match="4 x "):
        train(job(force=True))
    disk_with(2.1)
    assert train(job(force=True)).finished  # the old run's room is free then


@pytest.mark.parametrize(("save_every", "best", "count"), [(1, 1, 3), (2, 2, 3), (None, 3, 2)])
def test_the_best_checkpoint_and_those_of_evaluations_need_room_too(
    job, rows, tmp_path, monkeypatch, save_every, best, count
):
    class Evaluator:
        """Finds each step better than the one before, until one is the best."""

        def __init__(self, *values: object) -> None:
            self.step = 0

        def run(self, wanted_to_stop: object) -> Evaluation:
            self.step += 1
            return Evaluation(abs(best - self.step), 0.5, 10, 5)

    monkeypatch.setattr(training, "Evaluator", Evaluator)
    run, most, asked = RunFolder(tmp_path / "run"), 0, []
    monkeypatch.setattr(training, "check_room", lambda run, needed, count, *, freed: asked.append(count))
    tidy = checkpoint._tidy

    def counted(*values: object) -> None:
        nonlocal most
        most = max(most, len(run.checkpoints()))
        tidy(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "_tidy", counted)
    changes = {"train__save_every": save_every, "train__eval_every": 1, "train__keep_checkpoints": 1}
    train(replace(job(**changes), eval_data=rows))
    assert asked == [most] == [count]


def test_a_run_that_fills_the_disk_is_told_to_resume(job, tmp_path, monkeypatch):
    save = checkpoint.save

    def full(run: RunFolder, state: checkpoint.RunState, *arguments: object) -> Path:
        if state.step == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(run, state, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(JobError, match="the disk is full") as caught:
        train(job())
    assert (caught.value.where, "--resume" in str(caught.value.fix)) == (str(tmp_path / "run"), True)
    monkeypatch.setattr(checkpoint, "save", save)
    assert train(job(resume=True)).finished


def test_a_folder_in_which_another_run_is_at_work_is_refused(job, tmp_path):
    refused: list[str] = []

    def meddle(step: int) -> None:
        for other in (job(resume=True), job(force=True)):
            with pytest.raises(InputError) as caught:
                train(other)
            refused.append(caught.value.what)

    assert train(job(train__steps=2), on_step=meddle).finished
    assert refused == ["another spark13b trains in this folder"] * 4
    assert train(job(resume=True, train__steps=3)).steps == 3


def test_a_run_that_began_elsewhere_while_the_weights_were_read_is_not_written_over(job, tmp_path, monkeypatch):
    begin = training.Training.__init__

    def slowly(self: training.Training, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(training.Training, "__init__", begin)
        train(job(train__steps=2))

    monkeypatch.setattr(training.Training, "__init__", slowly)
    with pytest.raises(InputError, match="already exists"):
        train(job())
    assert [path.name for path in RunFolder(tmp_path / "run").checkpoints()] == ["step-00000001", "step-00000002"]


def test_a_claim_without_a_run_leaves_a_folder_that_a_run_may_begin_in(job, tmp_path):
    (tmp_path / "run").mkdir()
    with Claim(tmp_path / "run") as claim:
        claim.take()
    assert (tmp_path / "run" / LOCK).exists()
    assert train(job(train__steps=1)).finished


def test_rows_that_were_made_anew_are_noted_when_a_run_goes_on(job, tmp_path):
    train(job(train__steps=1))
    again = replace(job(resume=True, train__steps=2), data=small_rows(tmp_path, records=10))
    notes, said = Notes(), "note: the rows have another manifest than those of the run's last start; it goes on at"
    train(again, notes)
    assert any(text.startswith(said) for text in notes.said)
    notes.said.clear()
    train(replace(again, preset=job(train__steps=3).preset), notes)
    assert not any(text.startswith(said) for text in notes.said)


def test_weights_that_are_not_there_or_do_not_fit_are_found_without_data(job, tmp_path):
    check(job())
    with pytest.raises(InputError, match="no such checkpoint"):
        check(replace(job(load=tmp_path / "none"), data=None))
    train(job(train__steps=1))
    with pytest.raises(InputError, match="does not fit the model"):
        check(replace(job(load=tmp_path / "run", model__num_layers=2), data=None))
    check(replace(job(load=tmp_path / "run"), data=None))


def test_the_tokenizer_of_rows_that_came_from_elsewhere_is_taken_from_the_weights_or_missed(job, tmp_path):
    train(job(train__steps=1))
    (tmp_path / "run").rename(tmp_path / "base")
    rows = small_rows(tmp_path, records=10)
    manifest = Path(f"{rows}.json")
    manifest.write_text(manifest.read_text().replace(str(GOLDEN), "/elsewhere"))
    notes, said = Notes(), "note: the tokenizer of the rows is not here; answers of this run need --tokenizer"
    train(replace(job(train__steps=1, load=tmp_path / "base"), data=rows), notes)
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.model").is_file()
    assert said not in notes.said
    train(replace(job(train__steps=1, force=True), data=rows), notes)
    assert not (tmp_path / "run" / "tokenizer").exists()
    assert said in notes.said


def test_fine_tuning_from_nothing_and_a_load_that_is_not_read_are_noted(job, tmp_path):
    notes = Notes()
    train(job(train__steps=1), notes)
    assert "note: fine-tuning begins with random weights; --load takes those of a model" in notes.said
    notes.said.clear()
    train(job(resume=True, train__steps=2), notes)
    assert not any("random" in text or "--load" in text for text in notes.said)
    train(job(resume=True, train__steps=3, load=tmp_path / "run"), notes)
    assert "note: --load is not read: the run goes on with the weights of its own checkpoint" in notes.said
