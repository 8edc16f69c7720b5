"""The watch over the workers of this machine: failures, hanging, signals, and what other machines report."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from spark13b.cluster import failures
from spark13b.cluster.failures import Failure
from spark13b.cluster.processes import Member, send
from spark13b.cluster.relay import Relay
from spark13b.cluster.reports import ErrorReport, Heartbeat, Reports
from spark13b.errors import JobError

_EVERY_SECONDS = 0.1
_LOOK_EVERY_SECONDS = 0.5  # at the steps and at the other machines, which may be at the other end of a network disk
# for the failures of the other workers to be seen, too; a killed process takes a while to give its memory back
_GRACE_SECONDS, _ECHO_GRACE_SECONDS = 0.5, 5.0
_LEAVE_SECONDS = 60.0  # for workers and scheduler to leave when all have their result
_STOP_SECONDS = 5.0  # for workers that were told twice to stop
_STACK_SECONDS = 1.0  # for hanging workers to write where they are


class Signals:
    """Ctrl-C and SIGTERM at the launcher, counted and not yet acted upon."""

    def __init__(self) -> None:
        self.received: list[int] = []

    @contextmanager
    def caught(self) -> Iterator[Signals]:
        """Catch them inside; outside the main thread they go where they went before."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_if_any(self) -> None:
        """Raise KeyboardInterrupt when one has come: nothing has begun that would be worth an orderly end."""
        if self.received:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)


class Neighbours:
    """What the launchers of the other machines report, through the log folder if they share it.

    Where they do not, MindSpore's own time-outs end the workers about 30 s after a machine is lost.
    """

    def __init__(self, log_dir: Path, node: int, nodes: int) -> None:
        self._others = [log_dir / f"node_{other}.failed" for other in range(nodes) if other != node]
        self._own = log_dir / f"node_{node}.failed"
        if self._others:
            self._own.unlink(missing_ok=True)
            started = log_dir / f"node_{node}.started"
            started.touch()
            self._started = started.stat().st_mtime_ns  # by the clock of the disk: those of the machines differ

    def tell(self, error: BaseException) -> None:
        """Let the other machines know why this one ends."""
        if self._others:
            draft = self._own.with_suffix(".part")
            with contextlib.suppress(OSError):  # a full disk must not hide the error itself
                draft.write_text(json.dumps(asdict(ErrorReport.of(error)), ensure_ascii=False), encoding="utf-8")
                draft.replace(self._own)

    def failure(self) -> ErrorReport | None:
        """The failure of another machine since this launch began."""
        for path in self._others:
            try:
                if path.stat().st_mtime_ns >= self._started:
                    return ErrorReport(**json.loads(path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                pass
        return None


class Watch:
    """The members of one launch, watched until all workers have left. Times in seconds."""

    def __init__(
        self,
        members: Sequence[Member],
        reports: dict[int, Reports],
        relay: Relay,
        signals: Signals,
        neighbours: Neighbours,
        hang_timeout: float,
        first_step_timeout: float,
    ) -> None:
        self._workers = [member for member in members if member.rank is not None]
        self._scheduler = next((member for member in members if member.rank is None), None)
        self._reports, self._relay, self._signals, self._neighbours = reports, relay, signals, neighbours
        self._hang_timeout, self._first_step_timeout = hang_timeout, first_step_timeout
        self._forwarded, self._must_stop_by = 0, math.inf
        self._failures: dict[str, Failure] = {}
        self._heartbeats: dict[int, Heartbeat] = {}
        self._moved = time.monotonic()
        self._looked = 0.0
        self._all_done: float | None = None

    def run(self) -> None:
        """Return when all workers have ended well; else raise the error of the one that failed first.

        Raises KeyboardInterrupt when they stopped before they could finish their step.
        """
        while any(worker.process.poll() is None for worker in self._workers):
            self._relay.follow()
            self._forward()
            self._look_for_failures()
            if self._failures:
                break
            if self._all_have_results():
                return
            self._look_for_hanging()
            time.sleep(_EVERY_SECONDS)
        self._look_for_failures()
        if self._failures:
            raise self._error()
        self._relay.follow()

    def wait_for_scheduler(self) -> None:
        """Let the scheduler serve the workers of other machines until they have left."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._scheduler is not None and self._scheduler.process.poll() is None and time.monotonic() < deadline:
            time.sleep(_EVERY_SECONDS)

    def _forward(self) -> None:
        """Pass the signals on to the workers: the first asks them to finish their step, the second not to."""
        for number in self._signals.received[self._forwarded :]:
            self._forwarded += 1
            send(self._workers, number)
            if self._forwarded == 2:
                self._must_stop_by = time.monotonic() + _STOP_SECONDS
        if self._forwarded > 2 or time.monotonic() > self._must_stop_by:
            raise KeyboardInterrupt

    def _look_for_failures(self) -> None:
        """Note the failures seen for the first time, with the time. What crashes after its result has not failed."""
        for member in (*self._workers, *([self._scheduler] if self._scheduler else [])):
            ranks = list(self._reports) if member.rank is None else [member.rank]
            report = self._reports[member.rank].error() if member.rank is not None else None
            if report is None and all(self._reports[rank].result() is not None for rank in ranks):
                continue
            known = self._failures.get(member.name)
            if known is None or known.report is None:
                failure = failures.failure_of(member, report)
                if failure is not None and (known is None or report is not None):
                    self._failures[member.name] = failure

    def _error(self) -> BaseException:
        """Give the other workers some time to fail, too; then choose the error."""
        began = time.monotonic()
        while True:
            found = list(self._failures.values())
            first = failures.first(found)
            grace = _ECHO_GRACE_SECONDS if first.is_echo else _GRACE_SECONDS
            if len(found) >= len(self._workers) or time.monotonic() - began > grace:
                break
            time.sleep(_EVERY_SECONDS)
            self._look_for_failures()
        self._relay.follow()
        elsewhere = self._neighbours.failure()
        if first.is_echo and elsewhere is not None:
            return failures.exception_of(elsewhere)
        if self._signals.received and any(failure.is_interruption for failure in found):
            return KeyboardInterrupt()
        return failures.exception_of(failures.error_of(first, found, len(self._workers)))

    def _all_have_results(self) -> bool:
        """Whether all workers have what they worked for, and do not leave all the same."""
        if self._all_done is None and all(self._reports[rank].result() is not None for rank in self._reports):
            self._all_done = time.monotonic()
        return self._all_done is not None and time.monotonic() - self._all_done > _LEAVE_SECONDS

    def _look_for_hanging(self) -> None:
        """Raise JobError when no worker has moved for too long, or another machine's error."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_SECONDS:
            return
        self._looked = now
        elsewhere = self._neighbours.failure()
        if elsewhere is not None:
            raise failures.exception_of(elsewhere)
        heartbeats = {rank: reports.heartbeat() for rank, reports in self._reports.items()}
        if heartbeats != self._heartbeats:
            self._heartbeats, self._moved = heartbeats, now
        begun = min(heartbeat.begun for heartbeat in heartbeats.values())
        # the first step includes the compilation, which takes 20 minutes for the 13B model
        limit = self._hang_timeout if begun >= 2 else self._first_step_timeout
        if now - self._moved > limit:
            send(self._workers, signal.SIGUSR1)
            time.sleep(_STACK_SECONDS)
            raise failures.exception_of(self._hanging(limit))

    def _hanging(self, limit: float) -> ErrorReport:
        steps = {worker: self._heartbeats[worker.rank].step or 0 for worker in self._workers if worker.rank is not None}
        least, most = min(steps.values()), max(steps.values())
        behind = [worker for worker in self._workers if steps[worker] == least]
        names = ", ".join(worker.name for worker in behind) + (" is" if len(behind) == 1 else " are")
        if most == 0:
            what = "no worker has begun its first step"
        elif least == most:
            what = f"all workers began step {least} and none has finished it"
        elif least == 0:
            what = f"{names} before the first step, others began step {most}"
        else:
            what = f"{names} behind, at step {least}, others at step {most}"
        return ErrorReport(
            "job",
            f"no worker has moved for {limit:g} s: {what}",
            str(behind[0].log),
            None,
            "the end of the log shows where it stands; if it was only slow, raise --hang-timeout",
            time.time(),
        )


def lost_result(worker: Member) -> JobError:
    """The error of a worker that ended well without saying what came of it."""
    return JobError(f"{worker.name} ended without a result", where=worker.log, fix="its log says what it did")
