"""Which failure is shown when several workers fail."""

from __future__ import annotations

from pathlib import Path

from spark13b.cluster.failures import Failure, error_of, first
from spark13b.cluster.processes import Adopted, Member
from spark13b.cluster.reports import ErrorReport
from spark13b.errors import InputError

LOST_PEER = RuntimeError("Launch kernel failed: Default/AllReduce-op0")


def failure(rank: int | None, seen: float, code: int | None = 1, error: BaseException | None = None) -> Failure:
    report = None
    if error is not None:
        report = ErrorReport(**{**vars(ErrorReport.of(error)), "time": seen})
    return Failure(Member(rank, Adopted(1), Path(f"worker_{rank}.log")), code, report, seen)


def test_the_earliest_error_is_shown() -> None:
    early, late = failure(1, 1.0, error=ValueError("bad")), failure(0, 2.0, error=InputError("wrong"))
    assert first([late, early]) is early


def test_a_death_comes_before_the_loss_of_the_dead_that_was_reported_earlier() -> None:
    # a large process takes seconds to give its memory back, its peers notice sooner that it is gone
    lost, death = failure(0, 1.0, error=LOST_PEER), failure(1, 3.0, code=-9)
    assert first([lost, death]) is death


def test_mindspore_ending_its_own_process_and_the_scheduler_come_last() -> None:
    scheduler, ended, real = failure(None, 1.0), failure(0, 2.0, code=-15), failure(1, 3.0, error=KeyError("x"))
    assert first([scheduler, ended, real]) is real
    assert first([failure(0, 2.0, code=-15)]).code == -15


def test_a_worker_that_nobody_here_stopped_was_not_interrupted() -> None:
    stopped = failure(0, 1.0, error=KeyboardInterrupt())
    assert first([stopped, failure(1, 2.0, code=-9)]).code == -9
    shown = error_of(stopped, [stopped], workers=2)
    assert (shown.kind, shown.what) == ("job", "worker 0 was stopped by a signal that did not come from here")


def test_the_loss_of_a_peer_is_shown_when_nothing_else_is_known() -> None:
    lost = failure(0, 1.0, error=LOST_PEER)
    shown = error_of(lost, [lost], workers=2)
    assert shown.what == "worker 0: unexpected RuntimeError: Launch kernel failed: Default/AllReduce-op0"
    assert shown.where == "worker_0.log"
    assert "all machines" in (shown.fix or "")


def test_the_scheduler_says_which_worker_of_another_machine_is_lost(tmp_path: Path) -> None:
    log = tmp_path / "scheduler.log"
    log.write_text(
        "RuntimeError: Timed out node list is: [const vector]{1}, worker 1 is the first one timed out, ...\n"
    )
    scheduler = Failure(Member(None, Adopted(1), log), 1, None, 2.0)
    lost = failure(0, 1.0, error=LOST_PEER)
    assert first([lost, scheduler]) is scheduler
    assert error_of(scheduler, [lost, scheduler], workers=1).what == "worker 1 does not answer any more"
