"""Which of several failures is the one to show, and as what error.

When one worker fails, the others fail too, a little later, because they cannot reach it any more. These echoes are
shown only when nothing else is known.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spark13b.cluster.processes import Member
from spark13b.cluster.reports import ErrorReport
from spark13b.errors import InputError, JobError

# how MindSpore words the loss of a peer
_ECHO = re.compile(
    r"collective|all_?reduce|all_?gather|reduce_?scatter|broadcast.*fail|communicat|\brpc\b|\btcp\b|hccl|mccl"
    r"|launch(ing)? kernel|kernel launch|launch failed|timed out node|scheduler",
    re.IGNORECASE,
)
_NOISE = re.compile(r"\[(WARNING|INFO|DEBUG)\] \w+\(\d+")  # MindSpore's log lines
_LOG_LINES = 12
_MEMORY = "the system ends a process like this when memory runs out ('dmesg' says so): use fewer workers, a smaller "
_NEEDS_NOTHING = "the end of its log says what it was doing"
_LOST = re.compile(r"worker (\d+) is the first one timed out")  # the scheduler, when a machine is gone
_ELSEWHERE = "another worker may be lost: look into the logs of all machines"


@dataclass(frozen=True)
class Failure:
    """One member's failure: the report it wrote, or the exit code it died with. `seen`: seconds since 1970."""

    member: Member
    code: int | None
    report: ErrorReport | None
    seen: float

    @property
    def is_echo(self) -> bool:
        """Whether it looks like the consequence of another member's failure."""
        if self.member.rank is None:  # it has nothing to do but to notice
            return True
        if self.is_interruption:  # MindSpore sends SIGTERM to its own process when it has lost a peer
            return True
        return (
            self.report is not None and self.report.kind == "unexpected" and _ECHO.search(self.report.what) is not None
        )

    @property
    def is_interruption(self) -> bool:
        """Whether a signal stopped the member."""
        if self.report is not None:
            return self.report.kind == "interrupted"
        return self.code in (-signal.SIGTERM, -signal.SIGINT)

    @property
    def time(self) -> float:
        return self.report.time if self.report is not None else self.seen


def failure_of(member: Member, report: ErrorReport | None) -> Failure | None:
    """The failure of a member, now that it is first seen; None when it runs or ended well."""
    code = member.process.poll()
    if report is None and code in (None, 0):
        return None
    return Failure(member, code, report, time.time())


def first(failures: Sequence[Failure]) -> Failure:
    """The failure that the others follow from; of echoes the scheduler's, which says whom it has lost."""
    return min(failures, key=lambda failure: (failure.is_echo, failure.member.rank is not None, failure.time))


def error_of(failure: Failure, failures: Sequence[Failure], workers: int) -> ErrorReport:
    """The error to show. It names the worker, unless all `workers` of them fail in the same words."""
    member, report = failure.member, failure.report
    if report is None:
        return _death(member, failure.code)
    if report.kind == "interrupted":
        what = f"{member.name} was stopped by a signal that did not come from here"
        return ErrorReport("job", what, str(member.log), None, _ELSEWHERE, report.time)
    same = [other for other in failures if other.report is not None and other.report.what == report.what]
    if len(same) == workers > 1:
        return report
    where = report.where if report.where is not None else str(member.log)
    fix = _ELSEWHERE if report.fix is None and failure.is_echo else report.fix
    return replace(report, what=f"{member.name}: {report.what}", where=where, fix=fix)


def exception_of(report: ErrorReport) -> BaseException:
    """The exception that a single process would have raised."""
    if report.kind == "interrupted":
        return KeyboardInterrupt()
    kind = InputError if report.kind == "input" else JobError
    return kind(report.what, where=report.where, line=report.line, fix=report.fix)


def _death(member: Member, code: int | None) -> ErrorReport:
    """The error of a member that said nothing."""
    lines = last_lines(member.log)
    lost = _LOST.search("\n".join(lines))
    if member.rank is None and lost is not None:
        what = f"worker {lost[1]} does not answer any more"
        return ErrorReport("job", what, str(member.log), None, "look into its log, on its machine", time.time())
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "unknown"
        what = f"{member.name} was killed by signal {-code} ({name})"
        fix = _MEMORY + "batch or a shorter sequence" if -code == signal.SIGKILL else _NEEDS_NOTHING
    else:
        what = f"{member.name} ended without a message (exit code {code})"
        fix = _NEEDS_NOTHING
    if lines:
        what += "; the end of its log:\n" + "\n".join(f"    {line}" for line in lines)
    return ErrorReport("job", what, str(member.log), None, fix, time.time())


def last_lines(log: Path) -> list[str]:
    """The last lines of a log that a person may want to read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 2**16))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip() and not _NOISE.match(line)][-_LOG_LINES:]
