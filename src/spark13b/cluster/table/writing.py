"""A rank table as MindSpore reads it: every scalar a string, the keys in this order, indent 4."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.cluster.rank_table import Device, RankTable, Server


@dataclass(frozen=True)
class ServerDevices:
    """One machine and its devices, (physical number, network address), in the order of their ranks."""

    address: str
    devices: tuple[tuple[int, str], ...]


def ranked(servers: Sequence[ServerDevices]) -> RankTable:
    """The table in which ranks count from 0 in the order of the servers, and of the devices of each."""
    rank = 0
    list_of_servers = []
    for server in servers:
        devices = tuple(
            Device(device_id=str(number), device_ip=address, rank_id=str(rank + place))
            for place, (number, address) in enumerate(server.devices)
        )
        rank += len(devices)
        list_of_servers.append(Server(server_id=server.address, device=devices))
    return RankTable(
        version="1.0", server_count=str(len(servers)), server_list=tuple(list_of_servers), status="completed"
    )


def table_values(table: RankTable) -> dict[str, Any]:
    """The whole table as a file has it, keys in order."""
    return {
        "version": table.version,
        "server_count": table.server_count,
        "server_list": [
            {
                "server_id": server.server_id,
                "device": [
                    {"device_id": device.device_id, "device_ip": device.device_ip, "rank_id": device.rank_id}
                    for device in server.device
                ],
                "host_nic_ip": "reserve",
            }
            for server in table.server_list
        ],
        "status": table.status,
    }


def table_text(table: RankTable) -> str:
    """The JSON text, to the byte what the original's tools write for the same devices (no newline at the end)."""
    return json.dumps(table_values(table), indent=4)


def made_name(table: RankTable) -> str:
    """The file name of one machine's table: hccl_8p_01234567_10.0.0.1.json, with the physical numbers."""
    server = table.server_list[0]
    numbers = "".join(device.device_id for device in server.device)
    return f"hccl_{len(server.device)}p_{numbers}_{server.server_id}.json"


def merged_name(table: RankTable) -> str:
    """The file name of a merged table: hccl_2s_16p.json."""
    return f"hccl_{len(table.server_list)}s_{table.size}p.json"


def output_path(output: Path | None, name: str) -> Path:
    """Where a table goes: a file if `output` is one or ends with .json, else `name` in the folder `output`."""
    folder = output or Path()
    if folder.is_dir() or not (folder.is_file() or folder.suffix == ".json"):
        return folder / name
    return folder
