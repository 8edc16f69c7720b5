"""The start of workers through MindSpore's `msrun`: without a rank table, on one machine or several.

msrun is told not to wait (`--join=False`): its own watch kills every worker as soon as one of them ends with an exit
code, even while they save. It starts a scheduler and the workers, sets their ranks, and leaves them to the launcher.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from spark13b.cluster.failures import last_lines
from spark13b.cluster.processes import REPORTS, Adopted, Member, die_with_parent
from spark13b.errors import InputError, JobError

SHARED_PORT = 8118  # MindSpore's default
_START_SECONDS = 300.0  # loading mindspore from a cold network disk takes minutes


@dataclass(frozen=True)
class MsrunWorkers:
    """`nproc` workers on each of `nnodes` machines, of which this is number `node_rank`.

    The scheduler runs at `master_addr`, an address of machine 0; `master_port` None is a free one on one machine, 8118
    (MindSpore's default) on several.
    """

    nproc: int
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int | None = None

    def __post_init__(self) -> None:
        if self.nproc < 1:
            raise InputError(f"{self.nproc} processes are none", where="--nproc", fix="choose 1 or more")
        if self.nnodes < 1 or not 0 <= self.node_rank < self.nnodes:
            raise InputError(
                f"machine {self.node_rank} of {self.nnodes} does not exist",
                where="--node-rank",
                fix=f"--node-rank goes from 0 to {max(self.nnodes, 1) - 1}, --nnodes is the number of machines",
            )

    @property
    def size(self) -> int:
        """The number of workers on all machines."""
        return self.nproc * self.nnodes

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the workers on this machine."""
        return tuple(range(self.node_rank * self.nproc, (self.node_rank + 1) * self.nproc))

    @property
    def node(self) -> int:
        return self.node_rank

    @property
    def nodes(self) -> int:
        return self.nnodes

    def start(
        self, command: Sequence[str], log_dir: Path, environment: Mapping[str, str], check: Callable[[], None]
    ) -> list[Member]:
        """Run msrun until it has started everything; `check` is called all the while and may raise.

        Raises InputError when the port or the address cannot be used, JobError when msrun fails.
        """
        log = log_dir / "msrun.log"
        own = {**environment, "SPARK13B_NODE_RANK": str(self.node_rank)}
        # msrun starts `python` from PATH: it has to be the one that runs this
        folder = Path(sys.executable).parent
        own["PATH"] = os.pathsep.join([str(folder), own.get("PATH", os.defpath)])
        python = "python" if (folder / "python").exists() else "python3"
        with log.open("wb") as file:
            msrun = subprocess.Popen(
                [sys.executable, "-m", "mindspore.parallel.cluster.run", *self._options(log_dir), python, *command],
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        found: dict[int | None, Member] = {}
        deadline = time.monotonic() + _START_SECONDS
        while msrun.poll() is None:
            check()
            self._find(found, msrun.pid, log_dir, own[REPORTS])
            if time.monotonic() > deadline:
                raise JobError("msrun does not start the workers", where=log, fix="the log says how far it came")
            time.sleep(0.05)
        if msrun.returncode != 0:
            lines = "\n".join(f"    {line}" for line in last_lines(log)[-3:])
            raise JobError(f"msrun failed:\n{lines}", where=log, fix="the whole log is there")
        self._find(found, os.getpid(), log_dir, own[REPORTS])
        return [found.get(rank) or self._lost(rank, log_dir) for rank in self.ranks] + (
            [found[None]] if None in found and self.node_rank == 0 else []
        )

    def _options(self, log_dir: Path) -> list[str]:
        return [
            f"--worker_num={self.size}",
            f"--local_worker_num={self.nproc}",
            f"--node_rank={self.node_rank}",
            f"--master_addr={self.master_addr}",
            f"--master_port={self._port()}",
            f"--log_dir={log_dir}",
            "--join=False",
            "--bind_core=False",
        ]

    def _port(self) -> int:
        """The scheduler's port, checked where it will listen."""
        if self.master_port is None and self.nnodes == 1:
            return free_port(self.master_addr)
        port = self.master_port or SHARED_PORT
        if self.node_rank == 0:
            try:
                try_port(self.master_addr, port)
            except OSError as error:
                raise InputError(
                    f"the workers cannot meet at {self.master_addr} port {port}: {error.strerror}",
                    where="--master-addr",
                    fix="give an address of machine 0 (--node-rank 0) and a free port of it (--master-port)",
                ) from error
        return port

    def _find(self, found: dict[int | None, Member], parent: int, log_dir: Path, reports: str) -> None:
        """Add the members that are children of `parent`; their environment says who they are."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(parent).children():
                with contextlib.suppress(psutil.Error, OSError):
                    environment = child.environ()
                    role = environment.get("MS_ROLE")
                    if environment.get(REPORTS) != reports or role is None:
                        continue
                    rank = int(environment["RANK_ID"]) if role == "MS_WORKER" else None
                    name = "scheduler.log" if rank is None else f"worker_{rank}.log"
                    found.setdefault(rank, Member(rank, Adopted(child.pid), log_dir / name))

    @staticmethod
    def _lost(rank: int, log_dir: Path) -> Member:
        """A worker that ended before it was seen."""
        return Member(rank, _Gone(), log_dir / f"worker_{rank}.log")


class _Gone:
    """A process that nobody saw alive."""

    pid = 0

    def poll(self) -> int | None:
        return 1


def free_port(address: str) -> int:
    """A free port below those that the system gives to connections: the scheduler opens it only seconds later."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(1024, max(first, 2048)), 100):
        with contextlib.suppress(OSError):
            try_port(address, port)
            return port
    raise InputError(
        f"no free port was found at {address}",
        where="--master-addr",
        fix="give an address of this machine, or a free port of it (--master-port)",
    )


def try_port(address: str, port: int) -> None:
    """Listen there for a moment. Raises OSError when one cannot."""
    family, _, _, _, found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(found)
