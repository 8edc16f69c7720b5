"""Inside a worker: who it is, and how it tells its launcher what happens.

if worker.is_scheduler():
    worker.schedule(init_communication)
elif worker.is_worker():
    with worker.reporting() as me:
        result = train(job, me.progress, on_step=me.begin_step)
        me.write_result(asdict(result))
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.cluster.processes import LAUNCHER, REPORTS, SHOWN, die_with
from spark13b.cluster.relay import RecordedProgress
from spark13b.cluster.reports import Reports
from spark13b.errors import JobError
from spark13b.progress import Progress


def is_worker() -> bool:
    """Whether a launcher started this process to do a share of the job."""
    return REPORTS in os.environ and not is_scheduler()


def is_scheduler() -> bool:
    """Whether a launcher started this process to bring the workers together; it does no work itself."""
    return REPORTS in os.environ and os.environ.get("MS_ROLE") == "MS_SCHED"


@dataclass(frozen=True)
class Worker:
    """This process among the workers: `rank` of `size`, and what it reports with."""

    rank: int
    size: int
    progress: Progress
    _reports: Reports

    def begin_step(self, step: int) -> None:
        """Say that step `step` of the run begins; call it in every worker, or the launcher takes it for hanging."""
        self._reports.begin_step(step)

    def write_result(self, result: dict[str, Any]) -> None:
        """Say what the command returned: values that JSON can hold. `launch` returns them."""
        self._reports.write_result(result)


@contextmanager
def reporting() -> Iterator[Worker]:
    """Report to the launcher what happens inside, an exception too; this process ends when the launcher does."""
    _die_with_launcher()
    # the launcher asks a hanging worker with SIGUSR1 where it is, before it ends it
    with contextlib.suppress(ValueError, OSError, RuntimeError):  # stderr may be something without a descriptor
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1)
    rank, size = int(os.environ["RANK_ID"]), int(os.environ["RANK_SIZE"])
    reports = Reports(Path(os.environ[REPORTS]), rank)
    try:
        shown = reports.progress if rank == int(os.environ[SHOWN]) else None
        yield Worker(rank, size, RecordedProgress(shown, reports.show_life), reports)
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code in (None, 0)):
            reports.write_error(_plain(error))
        raise


def schedule(serve: Callable[[], None]) -> None:
    """Be the scheduler: `serve` is MindSpore's `communication.init` in this role, it returns when all workers left."""
    _die_with_launcher()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the workers decide when it ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.environ.get("SPARK13B_NODE_RANK", "0") == "0":  # one scheduler serves all machines
        serve()


def _die_with_launcher() -> None:
    if not die_with(int(os.environ[LAUNCHER])):
        sys.exit(1)


def _plain(error: BaseException) -> BaseException:
    """`sys.exit("message")` as an error that can be read."""
    return JobError(f"ended with {error.code!r}") if isinstance(error, SystemExit) else error
