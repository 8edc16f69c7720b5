"""Several workers as one job: start them, show the first one's progress, and end with its result or their first error.

Whatever happens, no process is left behind. When this process is killed, the kernel ends the workers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spark13b.cluster.processes import LAUNCHER, REPORTS, SHOWN, Member, adopting, end_all
from spark13b.cluster.relay import Relay
from spark13b.cluster.reports import Reports
from spark13b.cluster.watch import Neighbours, Signals, Watch, lost_result
from spark13b.errors import InputError
from spark13b.progress import SILENT, Progress

# what MindSpore reads to learn who a process is: nothing of it may come from outside
_ROLES = ("MS_ROLE", "MS_NODE_ID", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT")
_RANKS = ("RANK_TABLE_FILE", "RANK_SIZE", "RANK_ID", "DEVICE_ID")


class Workers(Protocol):
    """The workers to start on this machine: `MsrunWorkers` or `TableWorkers`."""

    @property
    def size(self) -> int:
        """The number of workers on all machines."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the workers on this machine."""

    @property
    def node(self) -> int:
        """Which machine this is, from 0."""

    @property
    def nodes(self) -> int:
        """The number of machines."""

    def start(
        self, command: Sequence[str], log_dir: Path, environment: Mapping[str, str], check: Callable[[], None]
    ) -> list[Member]:
        """Start them, and the scheduler if there is one."""


@dataclass(frozen=True)
class Launch:
    """Which workers to start, and where their logs go (worker_N.log, scheduler.log, msrun.log).

    They are taken for hanging when none of them moves for `hang_timeout` seconds; `first_step_timeout` until all of
    them have begun a second step.
    """

    workers: Workers
    log_dir: Path
    hang_timeout: float = 1800.0
    first_step_timeout: float = 7200.0


def launch(launch: Launch, command: Sequence[str], progress: Progress = SILENT) -> dict[str, Any]:
    """Run `command` (what follows `python`, e.g. `-P -m spark13b train ...`) in every worker; their first one's result.

    Raises the error of the worker that failed first, with its name; KeyboardInterrupt when Ctrl-C or SIGTERM ended the
    workers before they could save. One signal only asks them to stop: it is theirs to return a result then.
    """
    workers = launch.workers
    log_dir = _log_folder(launch.log_dir)
    reports_folder = Path(tempfile.mkdtemp(prefix="spark13b-workers-"))
    reports = {rank: Reports(reports_folder, rank) for rank in workers.ranks}
    members: list[Member] = []
    signals = Signals()
    neighbours = Neighbours(log_dir, workers.node, workers.nodes)
    with adopting(), signals.caught(), Relay(reports[workers.ranks[0]].progress, progress) as relay:
        try:
            members = workers.start(
                command, log_dir, _environment(reports_folder, workers.ranks[0]), signals.raise_if_any
            )
            watch = Watch(members, reports, relay, signals, neighbours, launch.hang_timeout, launch.first_step_timeout)
            watch.run()
            result = reports[workers.ranks[0]].result()
            if workers.nodes > 1:
                watch.wait_for_scheduler()
        except BaseException as error:
            neighbours.tell(error)
            raise
        finally:
            try:
                end_all(members, reports_folder)
            finally:
                shutil.rmtree(reports_folder, ignore_errors=True)
    if result is None:
        raise lost_result(members[0])
    return result


def _log_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the workers' logs cannot be written: {error.strerror}", where=path, fix="choose another folder"
        ) from error
    return path.resolve()


def _environment(reports: Path, shown: int) -> dict[str, str]:
    """The environment of the workers: the caller's, without the traces of another launch."""
    kept = {name: value for name, value in os.environ.items() if name not in (*_ROLES, *_RANKS)}
    kept.setdefault("GLOG_v", "3")  # MindSpore's warnings about its own start fill the logs otherwise
    own = {REPORTS: str(reports), LAUNCHER: str(os.getpid()), SHOWN: str(shown)}
    return {**kept, **own, "PYTHONUNBUFFERED": "1"}
