"""Commands that answer with a model that several processes share: the first one leads, the others follow."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark13b.cli import console, launching, streams

if TYPE_CHECKING:
    from spark13b.cluster.worker import Worker
    from spark13b.infer.session import FoundModel, Session
    from spark13b.model.mesh import Mesh
    from spark13b.progress import Progress


def options_for(nproc: int | None) -> dict[str, Any]:
    """The values of a preset whose model `nproc` processes of this machine share."""
    if nproc is None:
        return {}
    return {
        "machine.devices": nproc,
        "machine.devices_per_node": nproc,
        "parallel.data_parallel": 1,
        "parallel.model_parallel": nproc,
        "parallel.sequence_parallel": False,
    }


@dataclass
class Part:
    """What a command does its work with: its progress, and the processes that share the model."""

    progress: Progress
    mesh: Mesh | None = None
    live: Callable[[], None] = lambda: None  # to be called again and again
    socket: Path | None = None
    exits: ExitStack | None = None

    def lead(self, session: Session) -> None:
        """Let the other processes do what the engine of `session` does."""
        if self.mesh is None or self.mesh.world.size == 1:
            return
        from spark13b.infer.together import Followers

        assert self.socket is not None and self.exits is not None
        followers = Followers(self.socket, self.mesh.world.size - 1, self.live)
        session.make_decoder = self.exits.enter_context(followers).decoder


def answer(find: Callable[[], FoundModel], work: Callable[[FoundModel, Part], None], fold: bool) -> None:
    """Do `work` with the model that `find` finds: here, or where its preset has several devices in the first of so many
    processes, whose standard input and output are this one's. `fold`: adapters are added to the weights."""
    if launching.serve_as_worker(lambda me: _take_part(me, find(), work, fold)):
        return
    found = find()
    workers = launching.Processes().workers(found.preset)
    if workers is None:
        work(found, Part(console.TerminalProgress()))
        return
    from spark13b.model.device import check_driver

    check_driver(found.preset)
    logs = Path(tempfile.mkdtemp(prefix="spark13b-answers-"))  # stays when a worker fails: the error names it
    with streams.lent():
        launching.launch(workers, logs, hang_timeout=1800.0)
    shutil.rmtree(logs)


def _take_part(me: Worker, found: FoundModel, work: Callable[[FoundModel, Part], None], fold: bool) -> dict[str, Any]:
    from spark13b.cluster.processes import REPORTS
    from spark13b.infer.loading import load_part
    from spark13b.infer.together import follow
    from spark13b.model.mesh import join

    mesh = replace(join(found.preset.parallel), sequence_parallel=False)
    socket = Path(os.environ[REPORTS]) / "engine"
    if mesh.world.index:
        model, _ = load_part(found, mesh, fold)
        for number in (signal.SIGINT, signal.SIGTERM):  # the leader decides when it is over
            signal.signal(number, signal.SIG_IGN)
        follow(model, socket, _pulse(me))
        return {}
    with streams.borrowed(), ExitStack() as exits:
        work(found, Part(me.progress, mesh, _pulse(me), socket, exits))
    return {}


def _pulse(me: Worker) -> Callable[[], None]:
    """A function that tells the launcher, at most once a second, that this process does something."""
    last, count = 0.0, 0

    def pulse() -> None:
        nonlocal last, count
        if time.monotonic() - last > 1:
            last, count = time.monotonic(), count + 1
            me.begin_step(count)

    return pulse
