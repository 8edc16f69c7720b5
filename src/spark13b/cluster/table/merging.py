"""Tables of several machines as one: the order given is the order of the ranks, and of the launch."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spark13b.cluster.rank_table import RankTable
from spark13b.cluster.table.addresses import as_address
from spark13b.cluster.table.checking import flaws_of
from spark13b.cluster.table.layouts import Machine, read_any
from spark13b.cluster.table.writing import ServerDevices, ranked
from spark13b.errors import InputError


@dataclass(frozen=True)
class MergedTable:
    """The table, and what may not be meant by the order of its servers."""

    table: RankTable
    doubt: str | None


def merge_tables(paths: Sequence[Path]) -> MergedTable:
    """One table of the servers of all files, with ranks from 0 in this order.

    Raises InputError for a table with flaws, a server, or a device's address in two of them, and for servers with
    different numbers of devices.
    """
    machines: list[tuple[Path, Machine]] = []
    for path in paths:
        table = read_any(path)
        flaws = flaws_of(table, first_rank=None)  # the ranks are counted anew
        if flaws:
            more = f" (and {len(flaws) - 1} more)" if flaws[1:] else ""
            raise InputError(
                f"the table cannot be merged: {flaws[0].where} {flaws[0].what}{more}",
                where=path,
                fix=f"'spark13b rank-table check {path}' lists all that is wrong; make the table anew on its machine",
            )
        machines += [(path, machine) for machine in table.machines]
    _refuse_twice(machines)
    servers = [
        ServerDevices(
            as_address(machine.address or "") or machine.address or "",
            tuple((card.device or 0, as_address(card.address or "") or "") for card in machine.cards),
        )
        for _, machine in machines
    ]
    return MergedTable(ranked(servers), _order_doubt([server.address for server in servers]))


def _refuse_twice(machines: Sequence[tuple[Path, Machine]]) -> None:
    servers: dict[str, Path] = {}
    addresses: dict[str, tuple[Path, str]] = {}
    for path, machine in machines:
        server = as_address(machine.address or "") or machine.address or ""
        if server in servers:
            same = "twice" if servers[server] == path else f"also in {servers[server]}"
            raise InputError(
                f"server {server} is {same}",
                where=path,
                fix="give one table of each machine; 'gen --server-ip' tells machines apart whose addresses are alike",
            )
        servers[server] = path
        for card in machine.cards:
            address = as_address(card.address or "") or ""
            if address in addresses:
                first, owner = addresses[address]
                raise InputError(
                    f"device {card.device} of server {server} has the address {address}, as {owner} in {first}",
                    where=path,
                    fix="every device of the cluster needs an address of its own; set them with "
                    "'hccn_tool -i N -ip -s address A.B.C.D netmask M' and make the table anew",
                )
            addresses[address] = (path, f"device {card.device} of server {server}")
    first_path, first_machine = machines[0]
    for path, machine in machines:
        if len(machine.cards) != len(first_machine.cards):
            raise InputError(
                f"server {machine.address} has {len(machine.cards)} devices, "
                f"server {first_machine.address} in {first_path} has {len(first_machine.cards)}",
                where=path,
                fix="make the tables of all machines with the same number of devices (gen --device-num)",
            )


def _order_doubt(servers: Sequence[str]) -> str | None:
    """A sentence when the order is not that of the addresses, as when a shell sorted the file names."""
    try:
        keys = [ipaddress.ip_address(server) for server in servers]
    except ValueError:
        return None
    numbered = [(key.version, int(key)) for key in keys]
    for before, (one, other) in enumerate(itertools.pairwise(numbered)):
        if one > other:
            return (
                f"{servers[before]} comes before {servers[before + 1]}, as in the order given; "
                "a shell's * sorts names letter by letter. The machines must be launched in this order"
            )
    return None
