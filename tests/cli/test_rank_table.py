"""`spark13b rank-table` as a user meets it: files, exit codes, what it prints, and MindSpore never loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.fake_hccn import path_with, put_tool_on_path
from spark13b.cli.main import run

SAMPLES = Path(__file__).parents[1] / "cluster" / "tables"
ONE, TWO, MODELARTS = (
    SAMPLES / name for name in ("hccl_8p_01234567_10.0.0.1.json", "hccl_2s_16p.json", "jobstart_hccl.json")
)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine with eight devices, and an empty folder to work in."""
    put_tool_on_path(tmp_path / "bin", {n: f"192.{n % 4 + 1}.27.{6 + n // 4}" for n in range(8)})
    monkeypatch.setenv("PATH", path_with(tmp_path / "bin"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_gen_writes_the_table_under_its_usual_name_and_says_who_is_which_rank(capsys):
    assert run(["rank-table", "gen", "--device-num", "[0,8)", "--server-ip", "10.0.0.1"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"{ONE.name}: 1 server, 8 devices",
        "node 0 (10.0.0.1) runs ranks [0, 8): devices 0 1 2 3 4 5 6 7 are ranks 0 1 2 3 4 5 6 7",
    ]
    assert said.err == "addresses from hccn_tool\n"
    assert names() == [ONE.name]
    assert Path(ONE.name).read_bytes() == ONE.read_bytes()


def test_gen_in_a_container_names_the_physical_devices_and_the_address_it_took(capsys):
    assert run(["rank-table", "gen", "--visible-devices", "4,5,6,7", "--json"]) == 0
    said = capsys.readouterr()
    table = json.loads(said.out)
    server = table["server_list"][0]["server_id"]
    assert table["output"] == f"hccl_4p_4567_{server}.json"
    assert [device["device_id"] for device in table["server_list"][0]["device"]] == ["4", "5", "6", "7"]
    assert f"this machine is {server} in the table; --server-ip gives" in said.err


def test_json_is_the_table_as_the_file_has_it_and_where_that_is(capsys):
    other = Path("other.json")
    other.write_text(ONE.read_text().replace("10.0.0.1", "10.0.0.2").replace("192.", "193."))
    for words in (["gen", "--server-ip", "10.0.0.1"], ["merge", str(ONE), str(other)]):
        assert run(["rank-table", *words, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        path = Path(said.pop("output"))
        assert list(said.items()) == list(json.loads(path.read_text()).items())


def test_an_output_may_be_a_folder_or_a_file_and_is_not_overwritten_without_force(capsys):
    line = ["rank-table", "gen", "--server-ip", "10.0.0.1", "--output"]
    assert run([*line, "tables"]) == 0
    assert run([*line, "my.json"]) == 0
    assert Path("tables", ONE.name).read_bytes() == Path("my.json").read_bytes()
    Path("my.json").write_text("mine")
    assert run([*line, "my.json"]) == 2
    assert Path("my.json").read_text() == "mine"
    assert "the output already exists" in capsys.readouterr().err
    assert run([*line, "my.json", "--force"]) == 0
    assert Path("my.json").read_bytes() == ONE.read_bytes()
    assert names() == ["my.json", "tables"]


def test_gen_without_tool_and_file_says_what_is_missing_and_what_to_run(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert run(["rank-table", "gen", "--hccn-conf", "none.conf"]) == 2
    error = capsys.readouterr().err
    assert "hccn_tool is not on PATH; none.conf cannot be read: No such file or directory" in error
    assert "export PATH=$PATH:/usr/local/Ascend/driver/tools" in error
    assert names() == []
    Path("own.conf").write_text("".join(f"address_{n}=192.{n % 4 + 1}.27.{6 + n // 4}\n" for n in range(8)))
    assert run(["rank-table", "gen", "--hccn-conf", "own.conf", "--server-ip", "10.0.0.1"]) == 0
    assert capsys.readouterr().err == "addresses from own.conf\n"
    assert Path(ONE.name).read_bytes() == ONE.read_bytes()


def test_merge_says_for_each_node_which_ranks_it_runs(capsys):
    other = Path("other.json")
    other.write_text(ONE.read_text().replace("10.0.0.1", "10.0.0.2").replace("192.", "193."))
    assert run(["rank-table", "merge", str(other), str(ONE)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "hccl_2s_16p.json: 2 servers, 16 devices",
        "node 0 (10.0.0.2) runs ranks [0, 8): devices 0 1 2 3 4 5 6 7 are ranks 0 1 2 3 4 5 6 7",
        "node 1 (10.0.0.1) runs ranks [8, 16): devices 0 1 2 3 4 5 6 7 are ranks 8 9 10 11 12 13 14 15",
    ]
    assert "note: 10.0.0.2 comes before 10.0.0.1" in said.err
    assert run(["rank-table", "check", "hccl_2s_16p.json"]) == 0


def test_merge_refuses_one_server_twice_and_writes_nothing(capsys):
    assert run(["rank-table", "merge", str(ONE), str(ONE)]) == 2
    assert "server 10.0.0.1 is twice" in capsys.readouterr().err
    assert names() == []


def test_merge_writes_over_no_table_that_it_reads(capsys):
    own = Path(ONE.name)
    own.write_bytes(ONE.read_bytes())
    Path("other.json").write_text(ONE.read_text().replace("10.0.0.1", "10.0.0.2").replace("192.", "193."))
    assert run(["rank-table", "merge", str(own), "other.json", "--force", "--output", f"./{own}"]) == 2
    assert "the output is one of the inputs" in capsys.readouterr().err
    assert own.read_bytes() == ONE.read_bytes()


def test_check_lists_every_flaw_on_stdout_and_ends_with_2(capsys):
    Path("t.json").write_text(ONE.read_text().replace('"rank_id": "3"', '"rank_id": 4').replace("completed", "done"))
    assert run(["rank-table", "check", "t.json"]) == 2
    said = capsys.readouterr()
    places = [line.split(": ")[0] for line in said.out.splitlines()]
    assert places == ["status", "server_list[0].device[3].rank_id", "server_list[0].device[4].rank_id", "rank_id"]
    assert said.err.startswith("error: 4 inconsistencies in the rank table\n  at: t.json\n  fix: ")
    assert run(["rank-table", "check", "t.json", "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert [flaw["where"] for flaw in report["flaws"]] == places
    assert report["layout"] == "server_list"


def test_check_of_a_sound_table_says_so_and_how_modelarts_layout_is_converted(capsys):
    assert run(["rank-table", "check", str(TWO)]) == 0
    assert capsys.readouterr() == (f"{TWO}: fine. 2 servers, 16 devices\n", "")
    assert run(["rank-table", "check", str(MODELARTS)]) == 0
    assert f"'spark13b rank-table merge {MODELARTS}' makes MindSpore's of it" in capsys.readouterr().err
    assert run(["rank-table", "merge", str(MODELARTS)]) == 0
    assert run(["rank-table", "check", "hccl_2s_16p.json", "--json"]) == 0


def test_show_draws_all_devices_with_their_ranks(capsys):
    assert run(["rank-table", "show", str(MODELARTS)]) == 0
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if "192." in line]
    assert len(rows) == 16
    assert rows[0] == ["0", "10.19.1.142", "(job-train-0)", "0", "192.1.65.10", "0"]
    assert rows[-1] == ["7", "192.4.194.17", "15"]
    assert run(["rank-table", "show", str(TWO), "--json"]) == 0
    servers = json.loads(capsys.readouterr().out)["servers"]
    assert servers[1]["devices"][0] == {"device": 0, "address": "192.168.0.2", "rank": 8}


def test_show_loses_nothing_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert run(["rank-table", "show", str(TWO)]) == 0
    cells = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "192.168.0.2" in "".join(cell[4].strip() for cell in cells)


def test_show_of_a_table_with_flaws_shows_what_there_is(capsys):
    Path("t.json").write_text(ONE.read_text().replace('"device_ip": "192.1.27.6",', ""))
    assert run(["rank-table", "show", "t.json"]) == 0
    said = capsys.readouterr()
    assert "?" in said.out
    assert "'spark13b rank-table check t.json' lists" in said.err


def test_the_commands_never_load_mindspore():
    watched = f"""
import sys
from spark13b.cli.main import run
code = run(["rank-table", "gen", "--server-ip", "10.0.0.1"]) or run(["rank-table", "show", {str(TWO)!r}])
sys.exit(99 if "mindspore" in sys.modules else code)
"""
    result = subprocess.run([sys.executable, "-c", watched], env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
