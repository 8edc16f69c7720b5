"""Commands that several processes run together: the options that say how many, and the parent that starts them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark13b.cli import console
from spark13b.errors import InputError

if TYPE_CHECKING:
    from spark13b.cluster.launch import Workers
    from spark13b.cluster.rank_table import TableWorkers
    from spark13b.cluster.worker import Worker
    from spark13b.config import Preset

_PANEL = "Several processes"
Nproc = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        min=1,
        help="Processes on this machine, one a device. By default as many as the preset has devices, at most "
        "machine.devices_per_node; another number changes parallel.data_parallel.",
        rich_help_panel=_PANEL,
    ),
]
Nnodes = Annotated[int, typer.Option("--nnodes", min=1, help="Machines of the run.", rich_help_panel=_PANEL)]
NodeRank = Annotated[
    int | None,
    typer.Option(
        "--node-rank",
        min=0,
        help="Which of the machines this is, from 0; with --rank-table by default the one with this address.",
        rich_help_panel=_PANEL,
    ),
]
MasterAddr = Annotated[
    str | None, typer.Option("--master-addr", help="Address of machine 0.", rich_help_panel=_PANEL, show_default=False)
]
MasterPort = Annotated[
    int | None,
    typer.Option(
        "--master-port",
        min=1,
        max=65535,
        help="Port there \\[default: a free one; 8118 for several machines].",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
RankTable = Annotated[
    Path | None,
    typer.Option("--rank-table", help="Start by a RANK_TABLE_FILE instead of msrun.", rich_help_panel=_PANEL),
]
HangTimeout = Annotated[
    float,
    typer.Option(
        "--hang-timeout", min=1, help="Seconds without a step after which all are ended.", rich_help_panel=_PANEL
    ),
]


@dataclass(frozen=True)
class Processes:
    """What those options say."""

    nproc: int | None = None
    nnodes: int = 1
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    rank_table: Path | None = None
    hang_timeout: float = 1800.0

    def __post_init__(self) -> None:
        by_msrun = (self.nproc, self.master_addr, self.master_port)
        if self.rank_table is not None and (self.nnodes != 1 or any(value is not None for value in by_msrun)):
            raise InputError(
                "--rank-table says itself how many processes there are, and where",
                where="--rank-table",
                fix="leave out --nproc, --nnodes, --master-addr and --master-port",
            )
        if self.nnodes > 1 and (self.master_addr is None or self.node_rank is None):
            raise InputError(
                f"{self.nnodes} machines must know which one each is, and the address of machine 0",
                where="--nnodes",
                fix="add --node-rank and --master-addr",
            )
        if self.rank_table is None and (self.node_rank or 0) >= self.nnodes:
            raise InputError(
                f"{self.nnodes} machine(s) have numbers below {self.nnodes}", where="--node-rank", fix="see --nnodes"
            )

    @property
    def devices(self) -> int | None:
        """Processes on all machines, None when the preset decides."""
        if self.rank_table is not None:
            return self._table().size
        return None if self.nproc is None else self.nproc * self.nnodes

    def options(self, preset: Preset, assignments: Sequence[str]) -> Mapping[str, Any]:
        """The values of `preset` that follow from the number of processes; `assignments` (`--set`) win."""
        devices = self.devices
        if devices is None:
            return {}
        values = {} if devices == preset.parallel.devices else self._division(devices, preset, assignments)
        machines = len(self._table().table.server_list) if self.rank_table is not None else self.nnodes
        here = -(-devices // machines)
        if machines > 1 or here > preset.machine.devices_per_node:
            values["machine.devices_per_node"] = here
        return values

    @staticmethod
    def _division(devices: int, preset: Preset, assignments: Sequence[str]) -> dict[str, Any]:
        """What becomes of the layout of `preset` with so many devices."""
        given = dict(assignment.partition("=")[::2] for assignment in assignments)
        shared = given.get("parallel.model_parallel", "")
        model_parallel = int(shared) if shared.isdigit() and int(shared) else preset.parallel.model_parallel
        if devices % model_parallel:
            raise InputError(
                f"{devices} processes cannot share a model {model_parallel} at a time",
                where="parallel.model_parallel",
                fix=f"choose a multiple of {model_parallel} processes, or --set parallel.model_parallel",
            )
        return {"machine.devices": devices, "parallel.data_parallel": devices // model_parallel}

    def workers(self, preset: Preset) -> Workers | None:
        """The workers to start here for the devices of `preset`; None when this process does the work.

        Raises InputError when these are not as many as the processes, or more than its machines have.
        """
        if self.rank_table is not None:
            return self._table()
        devices, most = preset.parallel.devices, preset.machine.devices_per_node
        nproc = self.nproc or devices // self.nnodes
        if nproc * self.nnodes != devices:
            raise InputError(
                f"the preset has {devices} devices, not {nproc} on each of {self.nnodes} machines",
                where="--nproc",
                fix="give --nproc and --nnodes so that they make up machine.devices",
            )
        if nproc > most:  # the plan, and what it knows of memory, counts on `most`
            from spark13b.model.device import check_driver

            check_driver(preset)  # first: without an NPU the number of machines is of no interest
            raise InputError(
                f"{nproc} processes would start here, and a machine of the preset has {most} devices",
                where="machine.devices_per_node",
                fix=f"start {devices // most} machines (--nnodes {devices // most}, --node-rank, --master-addr), "
                f"or give --nproc {nproc} to have so many on one",
            )
        if devices == 1:
            return None
        from spark13b.cluster.msrun import MsrunWorkers

        return MsrunWorkers(nproc, self.nnodes, self.node_rank or 0, self.master_addr or "127.0.0.1", self.master_port)

    def _table(self) -> TableWorkers:
        from spark13b.cluster.rank_table import table_workers

        assert self.rank_table is not None
        return table_workers(self.rank_table, self.node_rank)


def serve_as_worker(work: Callable[[Worker], Mapping[str, Any]]) -> bool:
    """Do `work` and report its result when this process is one that `launch` started; False when it is not.

    msrun's scheduler, which runs the same command, brings the workers together here.
    """
    from spark13b.cluster import worker

    if worker.is_scheduler():
        from spark13b.model.mesh import meet

        worker.schedule(lambda: (meet(), None)[1])
        return True
    if not worker.is_worker():
        return False
    with worker.reporting() as me:
        me.write_result(dict(work(me)))
    return True


def launch(workers: Workers, logs: Path, hang_timeout: float) -> dict[str, Any]:
    """Run this very command line in every worker; the result of the first one."""
    from spark13b.cluster.launch import Launch
    from spark13b.cluster.launch import launch as start

    job = Launch(workers, logs, hang_timeout)
    return start(job, ["-P", "-m", "spark13b", *sys.argv[1:]], console.TerminalProgress())
