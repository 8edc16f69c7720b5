"""Launches of two real processes: results, progress, errors, signals, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.launching import JOB, Listener, start, write_table
from spark13b.cluster.launch import Launch, launch
from spark13b.cluster.msrun import MsrunWorkers
from spark13b.cluster.rank_table import table_workers
from spark13b.errors import InputError, JobError

Starts = Callable[..., subprocess.Popen[str]]
LAUNCHING = Path(__file__).with_name("launching.py")


def processes() -> list[psutil.Process]:
    """What the launches of this test started and still runs: workers, schedulers, msrun, their children."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        environment = process.info["environ"] or {}
        ours = environment.get("TMPDIR") == os.environ["TMPDIR"] and "SPARK13B_REPORTS" in environment
        if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.fixture(autouse=True)
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    """Starts a launcher process. After every test no worker, scheduler or msrun is left, nor a child of theirs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed launcher leaves its reports there; and it marks this test
    started = []

    def start_launcher(*words: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(LAUNCHING.parents[1])}
        line = [sys.executable, str(LAUNCHING), *words]
        started.append(subprocess.Popen(line, env=environment, stdout=-1, stderr=-1, text=True))
        return started[-1]

    yield start_launcher
    for process in started:
        process.kill()
        process.communicate()
    wait_until(lambda: not processes())
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def wait_until(true: Callable[[], Any], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def next_note(process: subprocess.Popen[str]) -> str:
    """The next note of worker 0, which a launcher writes to stderr."""
    assert process.stderr is not None
    return process.stderr.readline()


def outcome_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=100)
    assert out, err
    outcome: dict[str, Any] = json.loads(out)
    return outcome


@pytest.mark.parametrize("kind", ["table", "msrun"])
def test_the_first_workers_progress_is_shown_and_its_result_returned(kind: str, tmp_path: Path) -> None:
    progress = Listener()
    result = start(kind, tmp_path / "logs", "report", progress)
    environment = result["environment"]
    assert (environment["RANK_ID"], environment["RANK_SIZE"], environment["GLOG_v"]) == ("0", "2", "3")
    assert environment["MS_ROLE"] == (None if kind == "table" else "MS_WORKER")
    assert progress.heard == ["worker 0 of 2", ("training", 3, "steps"), {"loss": "0.33"}, 3, "end"]
    for rank in (0, 1):
        assert (tmp_path / "logs" / f"worker_{rank}.log").read_text() == f"a line of {rank}\n"


def test_workers_of_a_rank_table_know_the_table_their_rank_and_their_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path, {"10.0.0.1": 2, "10.0.0.2": 1})
    monkeypatch.setenv("RANK_ID", "7")  # left over from something else
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")

    def environment(node: int) -> dict[str, str]:
        workers = table_workers(table, node)
        values: dict[str, str] = launch(Launch(workers, tmp_path / "logs"), [str(JOB), "report"])["environment"]
        return values

    first = {"RANK_TABLE_FILE": str(table), "RANK_SIZE": "3", "RANK_ID": "0", "DEVICE_ID": "2"}
    assert environment(0) == {**first, "MS_ROLE": None, "GLOG_v": "3"}
    assert environment(1) == {**first, "MS_ROLE": None, "GLOG_v": "3", "RANK_ID": "2"}
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "2,3")  # the system numbers these from 0 then
    assert environment(0)["DEVICE_ID"] == "0"


def test_the_error_of_a_worker_is_the_error_of_the_launch_with_its_place_and_exit_code(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        start("table", tmp_path / "logs", "fail", Listener())
    error = caught.value
    assert (error.what, error.where, error.line, error.fix) == (
        "worker 1: the row is empty",
        "rows.jsonl",
        7,
        "fill it",
    )


def test_an_error_of_all_workers_names_none_of_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the row is empty\n"):
        start("table", tmp_path / "logs", "fail_alike", Listener())


def test_a_worker_that_was_killed_is_named_and_not_the_one_that_lost_it(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        start("table", tmp_path / "logs", "lose_peer", Listener())
    assert caught.value.what == "worker 1 was killed by signal 9 (SIGKILL)"
    assert caught.value.where == str(tmp_path / "logs" / "worker_1.log")
    assert "memory" in (caught.value.fix or "")


def test_a_worker_that_ends_without_a_word_is_shown_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        start("table", tmp_path / "logs", "leave", Listener())
    assert caught.value.what == (
        "worker 1 ended without a message (exit code 3); the end of its log:\n    the library has had enough"
    )


def test_a_crash_after_the_result_does_not_undo_it(tmp_path: Path) -> None:
    assert start("table", tmp_path / "logs", "crash_late", Listener()) == {"done": True}


def test_killing_a_worker_of_msrun_ends_all_with_its_name(tmp_path: Path, launcher: Starts) -> None:
    process = launcher("msrun", str(tmp_path / "logs"), "stay_in_here")
    assert next_note(process) == "waiting\n"
    of_rank = {child.environ().get("RANK_ID"): child for child in psutil.Process(process.pid).children()}
    of_rank["1"].kill()
    outcome = outcome_of(process)
    assert outcome == {"what": "worker 1 was killed by signal 9 (SIGKILL)", "code": 1}


def test_hanging_workers_are_ended_and_the_one_behind_is_named_with_its_stack(tmp_path: Path) -> None:
    workers = table_workers(write_table(tmp_path, {"127.0.0.1": 2}))
    with pytest.raises(JobError) as caught:
        launch(Launch(workers, tmp_path / "logs", hang_timeout=1.5), [str(JOB), "hang"])
    assert caught.value.what == "no worker has moved for 1.5 s: worker 1 is behind, at step 2, others at step 3"
    assert caught.value.where == str(tmp_path / "logs" / "worker_1.log")
    assert "in stay_in_here" in (tmp_path / "logs" / "worker_1.log").read_text()


def test_a_first_step_may_take_longer_than_others(tmp_path: Path) -> None:
    workers = table_workers(write_table(tmp_path, {"127.0.0.1": 2}))
    with pytest.raises(JobError, match=r"no worker has moved for 5 s: all workers began step 1 and none"):
        launch(Launch(workers, tmp_path / "logs", hang_timeout=0.1, first_step_timeout=5), [str(JOB), "wait"])


@pytest.mark.parametrize("kind", ["table", "msrun"])
def test_a_killed_launcher_leaves_no_process_behind(kind: str, tmp_path: Path, launcher: Starts) -> None:
    process = launcher(kind, str(tmp_path / "logs"), "wait")
    assert next_note(process) == "waiting\n"
    assert len(processes()) == (2 if kind == "table" else 3)
    process.kill()
    process.communicate()


def test_a_launcher_killed_while_msrun_starts_leaves_no_process_behind(tmp_path: Path, launcher: Starts) -> None:
    process = launcher("msrun", str(tmp_path / "logs"), "wait")
    wait_until(lambda: processes())
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_lets_the_workers_finish_and_return_their_result(
    number: int, tmp_path: Path, launcher: Starts
) -> None:
    process = launcher("table", str(tmp_path / "logs"), "stop" if number == signal.SIGINT else "wait")
    next_note(process)
    process.send_signal(number)
    if number == signal.SIGINT:
        assert outcome_of(process) == {"result": {"finished": False, "signals": 1}}
    else:  # these workers have no handler for it
        assert outcome_of(process) == {"what": "interrupted", "code": 1}


def test_a_second_signal_does_not_wait_for_the_workers_to_finish(tmp_path: Path, launcher: Starts) -> None:
    process = launcher("table", str(tmp_path / "logs"), "stop_slowly")
    assert next_note(process) == "stepping\n"
    process.send_signal(signal.SIGINT)
    assert next_note(process) == "saving\n"
    process.send_signal(signal.SIGINT)
    assert outcome_of(process) == {"what": "interrupted", "code": 1}


def test_an_interrupted_start_ends_at_once(tmp_path: Path, launcher: Starts) -> None:
    process = launcher("msrun", str(tmp_path / "logs"), "wait")
    wait_until(lambda: processes())
    process.send_signal(signal.SIGINT)
    assert outcome_of(process) == {"what": "interrupted", "code": 1}


def test_two_machines_are_one_job_and_the_failure_of_one_ends_the_other(tmp_path: Path, launcher: Starts) -> None:
    options = {"nproc": 1, "nnodes": 2, "master_port": free_port()}
    nodes = [
        launcher("msrun", str(tmp_path / "logs"), "fail", json.dumps({**options, "node_rank": node})) for node in (0, 1)
    ]
    expected = {"what": "worker 1: the row is empty", "code": 2}
    assert [outcome_of(node) for node in nodes] == [expected, expected]


def test_workers_of_msrun_reach_each_other(tmp_path: Path) -> None:
    assert start("msrun", tmp_path / "logs", "allreduce", Listener()) == {"sum": 3.0}


def test_a_port_that_is_taken_is_refused_before_the_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        workers = MsrunWorkers(2, master_port=taken.getsockname()[1])
        with pytest.raises(InputError, match=r"cannot meet at 127\.0\.0\.1 port"):
            launch(Launch(workers, tmp_path / "logs"), [str(JOB), "report"])


def test_impossible_numbers_of_processes_and_machines_are_refused() -> None:
    with pytest.raises(InputError, match="--nproc"):
        MsrunWorkers(0)
    with pytest.raises(InputError, match=r"machine 2 of 2(.|\n)*from 0 to 1"):
        MsrunWorkers(1, nnodes=2, node_rank=2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
