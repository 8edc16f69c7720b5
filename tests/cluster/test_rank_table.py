"""Rank tables: read, refused with a reason, and this machine found in them."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from cluster.launching import write_table
from spark13b.cluster.rank_table import read_rank_table, table_workers
from spark13b.errors import InputError


def test_a_table_is_read_with_its_servers_devices_and_ranks(tmp_path: Path) -> None:
    table = read_rank_table(write_table(tmp_path, {"10.0.0.2": 2, "10.0.0.10": 1}))
    assert [(server.server_id, server.ranks) for server in table.server_list] == [
        ("10.0.0.2", (0, 1)),
        ("10.0.0.10", (2,)),
    ]
    assert (table.size, table.server_list[1].device[0].device_ip) == (3, "192.168.1.0")


def test_a_machine_is_found_by_its_address_or_by_its_number(tmp_path: Path) -> None:
    table = write_table(tmp_path, {"203.0.113.9": 2, "127.0.0.1": 2})
    assert "127.0.0.1" in {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
    assert table_workers(table).ranks == (2, 3)
    assert table_workers(table, 0).ranks == (0, 1)


def test_a_machine_that_is_not_in_the_table_is_told_its_servers(tmp_path: Path) -> None:
    table = write_table(tmp_path, {"203.0.113.9": 2, "203.0.113.10": 2})
    with pytest.raises(InputError, match=r"no server .* this machine \(.*127\.0\.0\.1.*0 = 203\.0\.113\.9, 1 = 203"):
        table_workers(table)
    with pytest.raises(InputError, match=r"no server 2; its servers are 0 = 203\.0\.113\.9"):
        table_workers(table, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.update(status="initializing"), r"status: .*completed"),
        (lambda table: table["server_list"][0]["device"][1].pop("rank_id"), r"server_list\.0\.device\.1\.rank_id"),
        (lambda table: table["server_list"][0]["device"][1].update(rank_id=1), r"rank_id: .*valid string"),
        (lambda table: table["server_list"][0]["device"][1].update(rank_id="2"), r"these are \[0, 2, 2\]"),
        (
            lambda table: table["server_list"][0]["device"][1].update(device_id="2"),
            r"device 2 of server .* twice",
        ),
        (lambda table: table["server_list"][1]["device"][0].update(device_ip="192.168.0.1"), r"device_ip .* twice"),
        (lambda table: table["server_list"][1].update(server_id="10.0.0.1"), r"the servers are 10\.0\.0\.1, 10\.0"),
        (lambda table: table.clear(), r"version: Field required"),
    ],
)
def test_a_wrong_table_is_refused_with_the_reason(tmp_path: Path, change: object, message: str) -> None:
    path = write_table(tmp_path, {"10.0.0.1": 2, "10.0.0.2": 1})
    values = json.loads(path.read_text())
    assert callable(change)
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=message) as caught:
        read_rank_table(path)
    assert caught.value.where == str(path)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_rank_table(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(InputError, match="not a finished rank table: Invalid JSON"):
        read_rank_table(tmp_path / "text.json")


def test_keys_that_mindspore_skips_are_skipped(tmp_path: Path) -> None:
    path = write_table(tmp_path, {"10.0.0.1": 1})
    values = json.loads(path.read_text())
    values["group_count"] = "1"
    values["server_list"][0]["para_plane_nic_location"] = "device"
    path.write_text(json.dumps(values))
    assert read_rank_table(path).size == 1
