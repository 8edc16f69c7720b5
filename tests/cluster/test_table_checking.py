"""What is wrong with rank tables of any origin, all at once; and what merging makes of those that are right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark13b.cluster.rank_table import read_rank_table
from spark13b.cluster.table.checking import check_file
from spark13b.cluster.table.layouts import read_any
from spark13b.cluster.table.merging import merge_tables
from spark13b.cluster.table.writing import merged_name, table_text
from spark13b.errors import InputError

SAMPLES = Path(__file__).with_name("tables")
TWO_SERVERS, MODELARTS = SAMPLES / "hccl_2s_16p.json", SAMPLES / "jobstart_hccl.json"


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], object], source: Path = TWO_SERVERS) -> Path:
    values = json.loads(source.read_text())
    change(values)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(values))
    return path


def said(path: Path) -> list[str]:
    return [f"{flaw.where}: {flaw.what}" for flaw in check_file(path)[1]]


def halves(tmp_path: Path) -> tuple[Path, Path]:
    """The two servers of the documented table, each in a table of its own as `gen` writes it."""
    values = json.loads(TWO_SERVERS.read_text())
    paths = []
    for number, server in enumerate(values["server_list"]):
        for rank, device in enumerate(server["device"]):
            device["rank_id"] = str(rank)
        paths.append(tmp_path / f"server_{number}.json")
        paths[-1].write_text(json.dumps({**values, "server_count": "1", "server_list": [server]}, indent=4))
    return paths[0], paths[1]


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.name)
def test_sound_tables_of_both_layouts_have_no_flaw(path):
    table, flaws = check_file(path)
    assert flaws == []
    assert (table.size, table.status) == (8 if "8p" in path.name else 16, "completed")


def server(values: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return values["server_list"][number]


def device(values: dict[str, Any], number: int) -> dict[str, Any]:
    return server(values)["device"][number]


FLAWS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda t: t.update(status="initializing"), "status: is 'initializing': the table is not finished"),
    (lambda t: t.pop("status"), "status: is missing"),
    (lambda t: t.update(staus=t.pop("status")), "status: is missing; is 'staus' meant to be it?"),
    (lambda t: t.update(version="1.2"), "version: is '1.2'"),
    (lambda t: t.pop("version"), "version: is missing"),
    (lambda t: t.update(server_count="3"), "server_count: is 3, but the table holds 2 servers"),
    (lambda t: t.update(server_count=2), "server_count: is the number 2, not text in quotes"),
    (lambda t: t.update(server_count="two"), "server_count: is 'two', not a number"),
    (lambda t: t.update(server_list=[]), "server_list: is empty"),
    (lambda t: t.update(server_list={}), "server_list: is an object, not a list"),
    (lambda t: t["server_list"].append("10.0.0.3"), "server_list[2]: is text, not a server"),
    (lambda t: server(t).update(server_id="10.0.0.1"), "server_list[1].server_id: server 10.0.0.1 stands at"),
    (lambda t: server(t).update(server_id=""), "server_list[1].server_id: is empty"),
    (lambda t: server(t).pop("server_id"), "server_list[1].server_id: is missing"),
    (lambda t: server(t)["device"].pop(), "server_list: servers differ in their number of devices: 10.0.0.1 8, 10.0"),
    (lambda t: server(t).update(device=[]), "server_list[1].device: is empty"),
    (lambda t: server(t).update(devices=server(t).pop("device")), "server_list[1].device: is missing; is 'devices'"),
    (
        lambda t: device(t, 3).update(device_id="2"),
        "server_list[1].device[3].device_id: device 2 of 10.0.0.2 stands",
    ),
    (lambda t: device(t, 3).update(device_id="x"), "server_list[1].device[3].device_id: is 'x', not a number"),
    (lambda t: device(t, 3).pop("device_id"), "server_list[1].device[3].device_id: is missing"),
    (
        lambda t: device(t, 3).update(device_ip="192.168.0.0"),
        "device[3].device_ip: address 192.168.0.0 stands at",
    ),
    (lambda t: device(t, 3).update(device_ip="192.168.0"), "device[3].device_ip: is '192.168.0', which is no IP"),
    (lambda t: device(t, 3).update(device_ip=None), "server_list[1].device[3].device_ip: is null, not text"),
    (
        lambda t: device(t, 3).update(rank_id=11),
        "device[3].rank_id: is the number 11, not text in quotes",
    ),
    (lambda t: device(t, 3).update(rank_id="10"), "server_list[1].device[3].rank_id: rank 10 stands at server_list[1]"),
    (lambda t: device(t, 3).update(rank_id="10"), "rank_id: 16 devices have ranks 0 to 15; missing: 11"),
    (lambda t: device(t, 3).update(rank_id="16"), "rank_id: 16 devices have ranks 0 to 15; missing: 11, beyond: 16"),
    (lambda t: device(t, 3).update(rank_id=True), "rank_id: is true or false, not text"),
    (lambda t: t["server_list"].reverse(), "server_list[1].device[0].rank_id: rank 0 comes after rank 15"),
]


@pytest.mark.parametrize(("change", "expected"), FLAWS, ids=[text for _, text in FLAWS])
def test_each_kind_of_flaw_is_named_with_its_place(tmp_path, change, expected):
    found = said(changed(tmp_path, change))
    assert any(expected in line for line in found), found


def test_all_flaws_are_told_at_once(tmp_path):
    def spoil(table: dict[str, Any]) -> None:
        table.update(status="initializing", server_count="4")
        device(table, 0).update(rank_id=0, device_ip="192.168.1.0")
        device(table, 5).update(device_id="4")

    assert [line.partition(":")[0] for line in said(changed(tmp_path, spoil))] == [
        "status",
        "server_list[1].device[0].rank_id",
        "server_count",
        "server_list[1].device[5].device_id",
        "server_list[1].device[0].device_ip",
        "server_list[1].device[0].rank_id",
        "rank_id",
    ]


def test_a_key_that_a_hand_wrote_twice_is_seen(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(TWO_SERVERS.read_text().replace('"device_id": "3",', '"device_id": "3", "device_id": "2",', 1))
    assert said(path)[0] == "device_id: stands twice in the same object; the first value is lost"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in children for found in places(child, (*path, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.integers(0, 20).map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["device", "rank_id", "x"]), inner),
    max_leaves=6,
)


@given(source=st.sampled_from([TWO_SERVERS, MODELARTS]), data=st.data())
@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
def test_whatever_stands_in_a_table_it_is_sound_told_flawed_or_refused(tmp_path_factory, source, data):
    values = json.loads(source.read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from([place for place in places(values) if place]))
        target = values
        for key in path:
            target = target[key]
        target[last] = data.draw(JSON)
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(values))
    try:
        table, flaws = check_file(path)
    except InputError:
        return
    "\n".join(f"{flaw.where}: {flaw.what}" for flaw in flaws).encode()
    if not flaws:
        merged = merge_tables([path]).table
        assert merged.size == table.size == 16
        if table.layout == "server_list":  # what check finds sound, a launch takes
            assert read_rank_table(path).size == 16


def test_numbers_and_nesting_beyond_all_measure_are_refused(tmp_path):
    found = said(changed(tmp_path, lambda table: device(table, 0).update(rank_id="9" * 5000)))
    assert "not a number" in found[0]
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="not a rank table"):
        check_file(path)


def test_modelarts_ranks_follow_the_numbers_of_the_pods_not_their_order():
    table = read_any(MODELARTS)
    assert [(machine.pod, machine.address, machine.cards[0].rank) for machine in table.machines] == [
        ("job-train-0", "10.19.1.142", 0),
        ("job-train-1", "10.19.1.79", 8),
    ]


MODELARTS_FLAWS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda g: g.update(device_count="8"), "group_list[0].device_count: is 8, but the table holds 16 devices"),
    (lambda g: g.update(instance_count="1"), "group_list[0].instance_count: is 1, but the table holds 2 instances"),
    (lambda g: g["instance_list"][0].pop("devices"), "group_list[0].instance_list[0].devices: is missing"),
    (
        lambda g: g["instance_list"][1]["devices"][0].update(device_ip="192.1.194.10"),
        "group_list[0].instance_list[0].devices[0].device_ip: address 192.1.194.10 stands at group_list[0]",
    ),
    (
        lambda g: g["instance_list"][1].update(server_id="10.19.1.79"),
        "group_list[0].instance_list[0].devices[0].device_id: device 0 of 10.19.1.79 stands at group_list[0]",
    ),
]


@pytest.mark.parametrize(("change", "expected"), MODELARTS_FLAWS, ids=[text for _, text in MODELARTS_FLAWS])
def test_flaws_of_a_modelarts_table_are_found(tmp_path, change, expected):
    found = said(changed(tmp_path, lambda table: change(table["group_list"][0]), MODELARTS))
    assert any(line.startswith(expected) for line in found), found


def test_an_older_table_with_an_instance_for_each_device_is_read(tmp_path):
    instances = [
        {"devices": [{"device_id": str(n), "device_ip": f"192.1.27.{n}"}], "rank_id": str(n), "server_id": "10.0.0.1"}
        for n in range(4)
    ]
    group = {"device_num": "4", "server_num": "1", "group_name": "", "instance_count": "4", "instance_list": instances}
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"group_count": "1", "group_list": [group], "status": "completed"}))
    assert said(path) == []
    [machine] = read_any(path).machines
    assert [card.rank for card in machine.cards] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ('{"version": "1.0",}', "not JSON"),
        ("[]", "neither server_list"),
        ('{"version": "1.0"}', "neither server_list"),
        (b"\xff\xfe{", "not UTF-8"),
    ],
)
def test_a_file_that_holds_no_table_is_refused(tmp_path, text, message):
    path = tmp_path / "table.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        check_file(path)


def test_the_documented_table_of_two_servers_comes_out_of_a_merge_to_the_byte(tmp_path):
    merged = merge_tables(halves(tmp_path))
    assert table_text(merged.table).encode() == TWO_SERVERS.read_bytes()
    assert (merged_name(merged.table), merged.doubt) == (TWO_SERVERS.name, None)


def test_mindspore_reads_the_ranks_and_addresses_of_a_merged_table(tmp_path):
    # its only reader outside of its compiled part
    script = "import sys; from mindspore.train._utils import parse_hccl_file as read; print(read(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(TWO_SERVERS)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    servers = read_rank_table(TWO_SERVERS).server_list
    assert eval(result.stdout.splitlines()[-1]) == {
        int(device.rank_id): device.device_ip for server in servers for device in server.device
    }


def test_the_order_given_is_kept_and_one_that_a_shell_may_have_made_is_pointed_out(tmp_path):
    first, second = halves(tmp_path)
    second.write_text(second.read_text().replace("10.0.0.2", "10.0.0.10"))
    first.write_text(first.read_text().replace("10.0.0.1", "10.0.0.2"))
    by_number, by_letter = merge_tables([first, second]), merge_tables([second, first])
    assert [server.server_id for server in by_letter.table.server_list] == ["10.0.0.10", "10.0.0.2"]
    assert [server.ranks[0] for server in by_letter.table.server_list] == [0, 8]
    assert by_number.doubt is None
    assert by_letter.doubt is not None
    assert "10.0.0.10 comes before 10.0.0.2" in by_letter.doubt


def test_a_modelarts_table_becomes_one_for_mindspore(tmp_path):
    table = merge_tables([MODELARTS]).table
    path = tmp_path / merged_name(table)
    path.write_text(table_text(table))
    assert path.name == "hccl_2s_16p.json"
    assert [server.server_id for server in read_rank_table(path).server_list] == ["10.19.1.142", "10.19.1.79"]
    assert said(path) == []


def test_a_merged_table_can_be_merged_again(tmp_path):
    first, _ = halves(tmp_path)
    first.write_text(first.read_text().replace("10.0.0.1", "10.0.0.3").replace("192.168", "192.169"))
    assert merged_name(merge_tables([TWO_SERVERS, first]).table) == "hccl_3s_24p.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: server(t, 0).update(server_id="10.0.0.1"), r"server 10\.0\.0\.1 is also in .*server_0\.json"),
        (
            lambda t: server(t, 0)["device"][2].update(device_ip="192.168.1.0"),
            r"device 2 of server 10\.0\.0\.2 has the address 192\.168\.1\.0, as device 1 of server 10\.0\.0\.1 in",
        ),
        (lambda t: server(t, 0)["device"].pop(), r"server 10\.0\.0\.2 has 7 devices, server 10\.0\.0\.1 in .* has 8"),
        (lambda t: t.update(status="initializing"), "cannot be merged: status is 'initializing'"),
        (lambda t: server(t, 0)["device"][2].update(device_id="1"), r"device\[2\]\.device_id device 1 of 10\.0\.0\.2"),
        (lambda t: server(t, 0)["device"][2].update(rank_id="9"), r"missing: 2, beyond: 9"),
    ],
)
def test_tables_that_do_not_go_together_are_not_merged(tmp_path, change, message):
    first, second = halves(tmp_path)
    values = json.loads(second.read_text())
    change(values)
    second.write_text(json.dumps(values))
    with pytest.raises(InputError, match=message) as caught:
        merge_tables([first, second])
    assert caught.value.where == str(second)


def test_the_same_table_twice_is_refused(tmp_path):
    first, _ = halves(tmp_path)
    with pytest.raises(InputError, match=r"server 10\.0\.0\.1 is twice"):
        merge_tables([first, first])
