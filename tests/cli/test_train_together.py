"""`train --nproc`: a real job of two workers loses one, and one process goes on where they were."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from spark13b.ckpt import open_checkpoint
from spark13b.run_folder import RunFolder
from spark13b.train.run import Job, train
from train.small_run import small_preset, small_rows

STEPS, LOST_AFTER = 8, 5
# longer than the test, which the lost worker ends; with an epsilon that keeps updates smooth in the gradients
SHAPE = small_preset(train__steps=None, train__epochs=100, optimizer__epsilon=1e-4)


def recorded(run: RunFolder, what: str = "loss") -> list[float]:
    lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
    return [json.loads(line)[what] for line in lines if line.endswith("}")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def lost(
    rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, int, str, float, list[psutil.Process]]:
    """The run of two workers that share the model, one of which is killed: exit code, stderr, seconds to the end.

    Layers are recomputed from inputs that the workers divide; the run alone keeps what is inside them.
    """
    folder = tmp_path_factory.mktemp("together")
    preset = folder / "preset.yaml"
    preset.write_text(SHAPE.to_yaml())
    run = RunFolder(folder / "run")
    command = [sys.executable, "-m", "spark13b", "train", "--preset", preset, "--data", rows, "--output", run.path]
    command += ["--nproc", "2", "--set", "parallel.model_parallel=2"]
    command += ["--set", "train.recompute=true", "--set", "train.recompute_slice_activations=true"]
    command += ["--set", "train.save_every=3", "--set", f"schedule.total_steps={STEPS}"]
    command += ["--set", "train.keep_checkpoints=1000"]
    job = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers: list[psutil.Process] = []
    try:
        while len(recorded(run)) < LOST_AFTER:
            assert job.poll() is None, job.communicate()
            time.sleep(0.05)
        workers = [
            child for child in psutil.process_iter(["environ"])
            if (child.info["environ"] or {}).get("MS_ROLE") and str(run.path) in child.cmdline()
        ]  # fmt: skip
        victim = next(child for child in workers if child.info["environ"].get("MS_NODE_ID") == "1")
        began = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        _, stderr = job.communicate(timeout=100)
    finally:
        job.kill()
    return run, job.returncode, stderr, time.monotonic() - began, workers


def test_a_killed_worker_ends_all_within_30_seconds_with_its_name_and_log(
    lost: tuple[RunFolder, int, str, float, list[psutil.Process]],
) -> None:
    run, code, stderr, seconds, workers = lost
    assert code == 1
    assert "error: worker 1 was killed by signal 9" in stderr
    assert str(run.logs / "worker_1.log") in stderr
    assert "Traceback" not in stderr
    assert seconds < 30
    assert len(workers) >= 3  # two and the scheduler
    assert not [one for one in workers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_one_process_goes_on_from_the_slices_with_the_numbers_of_a_run_of_its_own(
    lost: tuple[RunFolder, int, str, float, list[psutil.Process]], rows: Path, tmp_path: Path
) -> None:
    run = lost[0]
    checkpoint, *later = run.checkpoints()
    assert (checkpoint / "rank_1" / "model.ckpt").is_file()
    for folder in later:  # how far the workers came before the loss was noticed is the machine's affair
        shutil.rmtree(folder)
    alone = SHAPE.model_copy(
        update={
            "train": SHAPE.train.model_copy(update={"steps": STEPS, "epochs": None, "save_every": None}),
            "schedule": SHAPE.schedule.model_copy(update={"total_steps": STEPS}),
        }
    )
    train(Job(alone, rows, run.path, resume=True))
    whole = train(Job(alone, rows, tmp_path / "alone"))
    for what in ("loss", "grad_norm"):
        np.testing.assert_allclose(recorded(run, what), recorded(RunFolder(whole.output), what), rtol=1e-5)
    with open_checkpoint(run.path) as found, open_checkpoint(whole.output) as expected:
        assert list(found) == list(expected)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5 * np.abs(expected[name]).max() + 1e-8)
