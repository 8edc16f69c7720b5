"""Rank tables of one machine: ranges, visible devices, addresses from a stand-in for hccn_tool or from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.fake_hccn import path_with, put_tool_on_path
from spark13b.cluster.rank_table import table_workers
from spark13b.cluster.table import addresses
from spark13b.cluster.table.addresses import device_addresses, server_address
from spark13b.cluster.table.devices import chosen_devices
from spark13b.cluster.table.making import make_table
from spark13b.cluster.table.writing import made_name, output_path, table_text
from spark13b.errors import InputError

SAMPLES = Path(__file__).with_name("tables")
DOCUMENTED = {n: f"192.{n % 4 + 1}.27.{6 + n // 4}" for n in range(8)}
SIXTEEN = {n: f"192.168.{n}.1" for n in range(16)}


@pytest.fixture
def no_conf(tmp_path: Path) -> Path:
    return tmp_path / "hccn.conf"


def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: dict[int, str], **options: tuple[int, ...]) -> Path:
    log = put_tool_on_path(tmp_path / "bin", known, **options)
    monkeypatch.setenv("PATH", path_with(tmp_path / "bin"))
    return log


def devices(table: object) -> list[tuple[str, str, str]]:
    [server] = table.server_list  # type: ignore[attr-defined]
    return [(device.device_id, device.device_ip, device.rank_id) for device in server.device]


def test_the_documented_table_of_eight_devices_comes_out_to_the_byte(monkeypatch, tmp_path, no_conf):
    tool(monkeypatch, tmp_path, DOCUMENTED)
    made = make_table("[0,8)", server_ip="10.0.0.1", conf=no_conf)
    sample = SAMPLES / "hccl_8p_01234567_10.0.0.1.json"
    assert table_text(made.table).encode() == sample.read_bytes()
    assert made_name(made.table) == sample.name
    assert (made.sources, made.doubt) == (("hccn_tool",), None)


def test_visible_devices_are_asked_for_by_their_physical_numbers(monkeypatch, tmp_path, no_conf):
    # the original ends in a KeyError here: it asks for the logical numbers and looks for the physical ones
    log = tool(monkeypatch, tmp_path, DOCUMENTED)
    made = make_table("[0,4)", "4,5,6,7", "10.0.0.1", conf=no_conf)
    assert devices(made.table) == [(str(n), DOCUMENTED[n], str(n - 4)) for n in (4, 5, 6, 7)]
    assert log.read_text().splitlines() == [f"-i {n} -ip -g" for n in (4, 5, 6, 7)]
    assert made_name(made.table) == "hccl_4p_4567_10.0.0.1.json"
    assert made.doubt is None


def test_numbers_of_two_digits_are_read_whole(monkeypatch, tmp_path, no_conf):
    # the original reads 1 to 16
    tool(monkeypatch, tmp_path, SIXTEEN)
    made = make_table("[10,16)", server_ip="10.0.0.1", devices_per_node=16, conf=no_conf)
    assert devices(made.table) == [(str(n), SIXTEEN[n], str(n - 10)) for n in range(10, 16)]
    assert made_name(made.table) == "hccl_6p_101112131415_10.0.0.1.json"


def test_a_machine_of_sixteen_devices_may_use_twelve(monkeypatch, tmp_path, no_conf):
    # the original refuses every range beyond 8
    tool(monkeypatch, tmp_path, SIXTEEN)
    assert len(devices(make_table("[0,12)", server_ip="10.0.0.1", devices_per_node=16, conf=no_conf).table)) == 12


@pytest.mark.parametrize(
    ("device_range", "visible", "per_node", "expected"),
    [
        (None, None, 8, tuple(range(8))),
        (None, "4,5,6,7", 8, (4, 5, 6, 7)),
        ("[0,1)", None, 8, (0,)),
        (" [ 4 , 8 ) ", None, 8, (4, 5, 6, 7)),
        ("[1,3)", "7, 6, 5, 4", 8, (6, 5)),
        ("[2,6)", None, 16, (2, 3, 4, 5)),
        ("[0,3)", None, 4, (0, 1, 2)),
    ],
)
def test_ranges_are_half_open_and_count_visible_devices(device_range, visible, per_node, expected):
    assert chosen_devices(device_range, visible, per_node) == expected


@pytest.mark.parametrize(
    ("device_range", "visible", "per_node", "message"),
    [
        ("[0,8]", None, 8, r"'\[0,8\]' is not a range"),
        ("0,8", None, 8, "is not a range"),
        ("[-1,4)", None, 8, "is not a range"),
        ("[0,4,8)", None, 8, "is not a range"),
        ("[4,4)", None, 8, r"\[4,4\) holds no device"),
        ("[6,4)", None, 8, "holds no device"),
        ("[0,16)", None, 8, r"ends behind device 7: the machine has 8 devices(.|\n)*--devices-per-node 16"),
        ("[4,8)", "4,5,6,7", 8, r"ends behind device 3: 4 are visible(.|\n)*are 0 to 3"),
        ("[3,6)", None, 8, "both groups of an 8-card machine"),
        ("[0,6)", "0,1,2,3,4,5", 8, "both groups of an 8-card machine"),
        (None, "4,5,x", 8, "'4,5,x' is not a list of devices"),
        (None, "4,,5", 8, "is not a list of devices"),
        (None, "4,5,4", 8, "device 4 is there twice"),
        (None, "8,9", 8, "of 8 devices has no device 8"),
    ],
)
def test_devices_that_do_not_exist_or_do_not_go_together_are_refused(device_range, visible, per_node, message):
    with pytest.raises(InputError, match=message):
        chosen_devices(device_range, visible, per_node)


def test_a_container_with_cards_of_both_groups_is_told_so(monkeypatch, tmp_path, no_conf):
    tool(monkeypatch, tmp_path, DOCUMENTED)
    doubt = make_table(None, "2,3,4,5", "10.0.0.1", conf=no_conf).doubt
    assert doubt is not None
    assert "2, 3, 4, 5 lie in both groups" in doubt


def test_an_ipv6_address_keeps_its_colons(monkeypatch, tmp_path, no_conf):
    tool(monkeypatch, tmp_path, {0: "fd00::192:168:1:1"})
    made = make_table("[0,1)", server_ip="fd00::1", conf=no_conf)
    assert devices(made.table) == [("0", "fd00::192:168:1:1", "0")]
    assert made.table.server_list[0].server_id == "fd00::1"


def test_without_the_tool_addresses_come_from_the_file(monkeypatch, tmp_path, no_conf):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    no_conf.write_text(
        "address_0=192.168.0.1\nnetmask_0=255.255.0.0\n address_10 = 192.168.10.1 \n#address_1=1.1.1.1\n"
    )
    found = device_addresses([10, 0], no_conf)
    assert [(one.device, one.address, one.source) for one in found] == [
        (10, "192.168.10.1", str(no_conf)),
        (0, "192.168.0.1", str(no_conf)),
    ]


def test_a_device_that_the_tool_does_not_know_is_looked_for_in_the_file(monkeypatch, tmp_path, no_conf):
    tool(monkeypatch, tmp_path, {0: "192.168.0.1"})
    no_conf.write_text("address_0=1.1.1.1\naddress_1=192.168.1.1\n")
    found = device_addresses([0, 1], no_conf)
    assert [one.address for one in found] == ["192.168.0.1", "192.168.1.1"]
    assert [one.source for one in found] == ["hccn_tool", str(no_conf)]


@pytest.mark.parametrize(
    ("known", "conf", "message"),
    [
        (None, None, r"device 0 is known: hccn_tool is not on PATH; .*hccn\.conf cannot be read: No such file"),
        (None, "address_1=1.1.1.1", r"not on PATH; .*hccn\.conf has no line address_0="),
        (None, "address_0=1.1.1", r"address_0=1\.1\.1, which is no address"),
        ({}, None, r"'hccn_tool -i 0 -ip -g' ended with exit code 1 and said '\[ERROR\]Failed to get IP address"),
        ({0: "0.0.0"}, None, r"'hccn_tool -i 0 -ip -g' tells '0\.0\.0', which is no address"),
        ({0: ""}, None, "tells '', which is no address"),
    ],
)
def test_what_each_of_the_two_sources_lacks_is_said(monkeypatch, tmp_path, no_conf, known, conf, message):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if known is not None:
        tool(monkeypatch, tmp_path, known)
    if conf is not None:
        no_conf.write_text(conf + "\n")
    with pytest.raises(InputError, match=message) as caught:
        device_addresses([0], no_conf)
    assert ("hccn_tool -i 0 -ip" if known is not None else "install the Ascend driver") in str(caught.value.fix)


def test_a_tool_that_hangs_is_given_up_for_all_devices(monkeypatch, tmp_path, no_conf):
    log = tool(monkeypatch, tmp_path, {}, hangs=(0, 1, 2))
    no_conf.write_text("".join(f"address_{n}=192.168.{n}.1\n" for n in range(2)))
    assert len(device_addresses([0, 1], no_conf, seconds=3)) == 2  # time for the tool to write its line
    assert len(log.read_text().splitlines()) == 1
    with pytest.raises(InputError, match=r"device 2 is known: 'hccn_tool -i 0 -ip -g' did not answer within 0\.2 s"):
        device_addresses([0, 2], no_conf, seconds=0.2)


def test_two_devices_with_one_address_are_refused(monkeypatch, tmp_path, no_conf):
    tool(monkeypatch, tmp_path, {0: "192.168.0.1", 1: "192.168.0.1"})
    with pytest.raises(InputError, match=r"devices 0 and 1 have the same address, 192\.168\.0\.1"):
        make_table("[0,2)", server_ip="10.0.0.1", conf=no_conf)


def test_the_machine_is_named_by_an_address_that_others_reach():
    assert not server_address(None).startswith("127.")
    assert server_address("10.0.0.7") == "10.0.0.7"
    with pytest.raises(InputError, match="'node-1' is no IP address"):
        server_address("node-1")


def test_a_machine_with_nothing_but_itself_must_be_told_its_address(monkeypatch):
    monkeypatch.setattr(addresses, "_own_addresses", lambda: ["127.0.1.1"])
    with pytest.raises(InputError, match="no address that others could reach"):
        server_address(None)


def test_an_output_is_a_file_or_a_folder(tmp_path):
    assert output_path(None, "a.json") == Path("a.json")
    assert output_path(tmp_path, "a.json") == tmp_path / "a.json"
    assert output_path(tmp_path / "new", "a.json") == tmp_path / "new" / "a.json"
    assert output_path(tmp_path / "b.json", "a.json") == tmp_path / "b.json"
    (tmp_path / "table").touch()
    assert output_path(tmp_path / "table", "a.json") == tmp_path / "table"


def test_the_workers_of_a_made_table_get_their_device_and_rank(monkeypatch, tmp_path, no_conf):
    tool(monkeypatch, tmp_path, DOCUMENTED)
    path = tmp_path / "table.json"
    path.write_text(table_text(make_table("[0,2)", "6,7", "127.0.0.1", conf=no_conf).table))
    script = tmp_path / "worker.py"
    script.write_text(
        "import os; print([os.environ[k] for k in ('RANK_TABLE_FILE','RANK_SIZE','RANK_ID','DEVICE_ID')])"
    )
    members = table_workers(path).start([str(script)], tmp_path, {"PATH": "/usr/bin:/bin"}, lambda: None)
    for member in members:
        assert member.process.wait(20) == 0  # type: ignore[attr-defined]
    assert [eval(member.log.read_text()) for member in members] == [
        [str(path), "2", "0", "6"],
        [str(path), "2", "1", "7"],
    ]
