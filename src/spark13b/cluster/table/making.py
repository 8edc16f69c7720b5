"""The rank table of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spark13b.cluster.rank_table import RankTable
from spark13b.cluster.table.addresses import HCCN_CONF, device_addresses, server_address
from spark13b.cluster.table.devices import apart, chosen_devices
from spark13b.cluster.table.writing import ServerDevices, ranked
from spark13b.errors import InputError


@dataclass(frozen=True)
class MadeTable:
    """The table, where its addresses come from (hccn_tool or a file), and what may not be meant."""

    table: RankTable
    sources: tuple[str, ...]
    doubt: str | None


def make_table(
    device_range: str | None = None,
    visible: str | None = None,
    server_ip: str | None = None,
    devices_per_node: int = 8,
    conf: Path = HCCN_CONF,
) -> MadeTable:
    """The table of this machine's devices `[first,last)` (logical numbers; all without it); see `chosen_devices`.

    Raises InputError for devices that do not exist, have no address, or share one.
    """
    numbers = chosen_devices(device_range, visible, devices_per_node)
    server = server_address(server_ip)
    found = device_addresses(numbers, conf)
    owner: dict[str, int] = {}
    for one in found:
        first = owner.setdefault(one.address, one.device)
        if first != one.device:
            raise InputError(
                f"devices {first} and {one.device} have the same address, {one.address}",
                where=one.source,
                fix=f"give each its own: hccn_tool -i {one.device} -ip -s address A.B.C.D netmask 255.255.0.0",
            )
    doubt = None
    if apart(numbers, devices_per_node):
        doubt = (
            f"devices {', '.join(map(str, numbers))} lie in both groups of an 8-card machine (0 to 3, 4 to 7); "
            "HCCL refuses that on the 910A (Atlas 800)"
        )
    table = ranked([ServerDevices(server, tuple((one.device, one.address) for one in found))])
    return MadeTable(table, tuple(dict.fromkeys(one.source for one in found)), doubt)
