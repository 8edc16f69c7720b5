"""Rank tables: which device of which server is which worker, and the start of one server's workers from that.

Format: RANK_TABLE_FILE 1.0 of MindSpore, in which every number is a string. With a table, MindSpore needs neither
msrun nor a scheduler: each process gets the table, its rank and its device by its environment.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spark13b.cluster.processes import Member
from spark13b.errors import InputError

_Number = Annotated[str, Field(pattern=r"^\d+$")]
_VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)  # tables of cluster tools hold more keys, MindSpore skips them


class Device(_Part):
    """One NPU: its number on the server, its own network address, its rank in the whole job."""

    device_id: _Number
    device_ip: str
    rank_id: _Number


class Server(_Part):
    """One machine, named by its address, with its devices in the order of their ranks."""

    server_id: str
    device: Annotated[tuple[Device, ...], Field(min_length=1, strict=False)]

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(int(device.rank_id) for device in self.device)


class RankTable(_Part):
    """A whole table."""

    version: str
    server_count: _Number
    server_list: Annotated[tuple[Server, ...], Field(min_length=1, strict=False)]
    status: Literal["completed"]

    @property
    def size(self) -> int:
        """The number of workers on all servers."""
        return sum(len(server.device) for server in self.server_list)


def read_rank_table(path: Path) -> RankTable:
    """The table in a file. Raises InputError naming the key that is wrong, or the ranks that do not fit together."""
    try:
        table = RankTable.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"the rank table cannot be read: {error.strerror}", where=path, fix="check the path of --rank-table"
        ) from error
    except ValidationError as error:
        flaw = error.errors()[0]
        key = ".".join(map(str, flaw["loc"]))
        raise InputError(
            f"not a finished rank table: {key + ': ' if key else ''}{flaw['msg']}",
            where=path,
            fix=f"'spark13b rank-table check {path}' lists all that is wrong; "
            f"of ModelArts' jobstart_hccl.json 'spark13b rank-table merge {path}' makes one for MindSpore",
        ) from error
    ranks = [rank for server in table.server_list for rank in server.ranks]
    if ranks != list(range(len(ranks))):
        raise InputError(
            f"the ranks of a table count from 0 in the order of its devices, these are {ranks}",
            where=path,
            fix="make the servers' tables anew (spark13b rank-table gen) and merge them in the order of the launch",
        )
    servers = [server.server_id for server in table.server_list]
    if len(set(servers)) != len(servers) or int(table.server_count) != len(servers):
        raise InputError(
            f"server_count is {table.server_count}, the servers are {', '.join(servers)}",
            where=path,
            fix="let every server be in the table once",
        )
    _check_devices(path, table)
    return table


def _check_devices(path: Path, table: RankTable) -> None:
    """Raise InputError for a device that a server has twice, or an address that two devices have."""
    names = [
        (f"device {device.device_id} of server {server.server_id}", f"device_ip {device.device_ip}")
        for server in table.server_list
        for device in server.device
    ]
    for kind in zip(*names, strict=True):
        twice = next((name for name in kind if kind.count(name) > 1), None)
        if twice is not None:
            raise InputError(
                f"{twice} is in the table twice",
                where=path,
                fix=f"correct it, or make the tables anew; 'spark13b rank-table check {path}' lists all that is wrong",
            )


@dataclass(frozen=True)
class TableWorkers:
    """The workers of one server of a table. `node` counts the servers from 0 in the table's order."""

    path: Path
    table: RankTable
    node: int

    @property
    def size(self) -> int:
        """The number of workers on all machines."""
        return self.table.size

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the workers on this machine."""
        return self.table.server_list[self.node].ranks

    @property
    def nodes(self) -> int:
        return len(self.table.server_list)

    def start(
        self, command: Sequence[str], log_dir: Path, environment: Mapping[str, str], check: Callable[[], None]
    ) -> list[Member]:
        """Start one process a device, each in a session of its own."""
        members = []
        for device, number in zip(self.table.server_list[self.node].device, self._devices(environment), strict=True):
            own = {
                "RANK_TABLE_FILE": str(self.path.resolve()),
                "RANK_SIZE": str(self.size),
                "RANK_ID": device.rank_id,
                "DEVICE_ID": number,
            }
            log = log_dir / f"worker_{device.rank_id}.log"
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, *command],
                    env={**environment, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            members.append(Member(int(device.rank_id), process, log))
        return members

    def _devices(self, environment: Mapping[str, str]) -> list[str]:
        """DEVICE_ID of each worker: the table's, or its place among the devices that this process is shown."""
        numbers = [device.device_id for device in self.table.server_list[self.node].device]
        visible = [number.strip() for number in environment.get(_VISIBLE, "").split(",") if number.strip()]
        if not visible:
            return numbers
        for number in numbers:
            if number not in visible:
                raise InputError(
                    f"{_VISIBLE} is {environment[_VISIBLE]} and hides device {number} of the rank table",
                    where=self.path,
                    fix=f"unset {_VISIBLE}, or make a table of the devices it names",
                )
        return [str(visible.index(number)) for number in numbers]


def table_workers(path: Path, node_rank: int | None = None) -> TableWorkers:
    """The workers of this machine by a rank table: server `node_rank`, else the one with an address of this machine.

    Raises InputError for a wrong table, and for a machine that is not in it.
    """
    table = read_rank_table(path)
    servers = [server.server_id for server in table.server_list]
    known = ", ".join(f"{node} = {server}" for node, server in enumerate(servers))
    if node_rank is not None:
        if not 0 <= node_rank < len(servers):
            raise InputError(
                f"the rank table has no server {node_rank}; its servers are {known}",
                where=path,
                fix=f"--node-rank goes from 0 to {len(servers) - 1}",
            )
        return TableWorkers(path, table, node_rank)
    own = _own_addresses()
    here = [node for node, server in enumerate(servers) if server in own]
    if len(here) != 1:
        raise InputError(
            f"no server of the rank table is this machine ({', '.join(sorted(own))}); its servers are {known}"
            if not here
            else f"several servers of the rank table are this machine; its servers are {known}",
            where=path,
            fix="say which one it is with --node-rank",
        )
    return TableWorkers(path, table, here[0])


def _own_addresses() -> set[str]:
    """The addresses of this machine, IPv6 without their zones."""
    return {
        address.address.split("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family.name in ("AF_INET", "AF_INET6")
    }
