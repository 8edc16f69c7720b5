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


def test_the_loss_of_a_peer_is_shown_when_nothing_else_is_known() -> None:
    lost = failure(0, 1.0, error=LOST_PEER)
    shown = error_of(lost, [lost], workers=2)
    assert shown.what == "worker 0: unexpected RuntimeError: Launch kernel failed: Default/AllReduce-op0"
    assert shown.where == "worker_0.log"
