"""`spark13b doctor`: a sound machine, machines with NPUs by stand-ins, and parts that are missing or broken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.fake_hccn import put_tool_on_path
from spark13b.cli.main import run
from spark13b.config import load_preset
from spark13b.doctor import Finding, examine, installation, machine
from spark13b.doctor.ascend import read_smi
from spark13b.doctor.findings import Places
from spark13b.doctor.ports import ports

NAMES = ["python", "packages", "native", "cpu", "memory", "disk", "ports", "driver", "hccn", "cann", "mindspore"]
NAMES += ["devices", "attention", "acctransformer"]
SMI = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc3                 Version: 24.1.rc3                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
{rows}
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 3180736       | python                   | 60870                   |
+===========================+===============+====================================================+
"""
ROW = """\
| {n}     {name:19} | {health:13} | 101.0       49                0    / 0             |
| 0                         | 0000:C{n}:00.0  | 0           0    / 0          3405 / {memory}         |
+===========================+===============+====================================================+"""
SOUND = {
    "mindspore": {"version": "2.9.0", "seconds": 1.0, "cann": ["8.3", "8.5"]},
    "devices": {"device": "ascend", "count": 8, "names": ["Ascend910B3"] * 8, "chip": "910B"},
    "attention": {
        "backend": "ascend",
        "reason": "",
        "fused": True,
        "tokens": 256,
        "difference": 1e-3,
        "allowed": 3e-2,
        "seconds": 2.0,
    },
}


def smi_table(names: Sequence[str] = ("910B3",) * 8, health: str = "OK", memory: int = 65536) -> str:
    rows = [
        ROW.format(n=n, name=name, health=health if n == 1 else "OK", memory=memory) for n, name in enumerate(names)
    ]
    return SMI.format(rows="\n".join(rows))


def probe_of(steps: dict[str, Any], end: str = "") -> tuple[str, ...]:
    """A stand-in for the process that looks at MindSpore: it tells these steps and then does `end`."""
    lines = [json.dumps({"step": step, **facts}) for step, facts in steps.items()]
    return (sys.executable, "-c", f"for line in {lines}: print('spark13b-probe ' + line, flush=True)\n{end}")


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with nothing of Ascend, and an empty folder to work in."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), "/usr/bin", "/bin"]))
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    root = tmp_path / "root"
    return Places(root / "davinci_manager", root / "version.info", (root / "cann",), root / "hccn.conf")


@pytest.fixture
def atlas(bare, tmp_path, monkeypatch):
    """An Atlas 800T A2 of stand-ins, all of it sound."""
    root = tmp_path / "root"
    (root / "cann" / "compiler").mkdir(parents=True)
    (root / "cann" / "compiler" / "version.info").write_text("Version=8.3.RC1\nversion_dir=8.3\n")
    (root / "version.info").write_text("Version=24.1.rc3\nascendhal_version=7.35.23\n")
    (root / "davinci_manager").touch()
    monkeypatch.setenv("ASCEND_HOME_PATH", str(root / "cann"))
    put_tool_on_path(tmp_path / "bin", {n: f"192.168.{n}.1" for n in range(8)})
    put_smi_on_path(tmp_path, smi_table())
    return bare


def put_smi_on_path(tmp_path: Path, output: str, code: int = 0) -> None:
    tool = tmp_path / "bin" / "npu-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n")
    tool.chmod(0o755)


def looked(
    places: Places, steps: dict[str, Any] = SOUND, end: str = "", preset: str | None = None, **options: Any
) -> list[Finding]:
    values = load_preset(preset) if preset else None
    return list(examine(values, places, probe_of(steps, end), **options))


def states(findings: list[Finding]) -> dict[str, str]:
    """The worst state of each part."""
    order = ("ok", "missing", "warn", "fail")
    found: dict[str, str] = {}
    for finding in findings:
        found[finding.name] = max(found.get(finding.name, "ok"), finding.state, key=order.index)
    return found


def only(findings: list[Finding], name: str) -> Finding:
    [finding] = [finding for finding in findings if finding.name == name]
    return finding


def test_a_cpu_machine_is_healthy_and_a_preset_that_fits_is_said_to(tmp_path):
    # the one test with the real MindSpore
    command = [sys.executable, "-m", "spark13b", "doctor", "--preset", "cpu-tiny-sft", "--json"]
    before = os.times()
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    after = os.times()
    report = json.loads(result.stdout)
    assert (result.returncode, report["healthy"], result.stderr) == (0, True, "")
    findings = [Finding(**one) for one in report["findings"]]
    assert list(dict.fromkeys(finding.name for finding in findings)) == [*NAMES, "preset"]
    assert only(findings, "mindspore").found.startswith("2.9.0, imported in ")
    assert only(findings, "devices").found == "the CPU"
    assert (
        "blocked, for the fused one needs an NPU: a call with 64 tokens is within" in only(findings, "attention").found
    )
    assert {states(findings)[name] for name in ("driver", "hccn", "cann", "acctransformer")} == {"missing"}
    assert list(tmp_path.iterdir()) == []  # MindSpore leaves files where it runs
    # the processor's time, 3 s: that of the clock is also the work of others
    assert after.children_user + after.children_system - before.children_user - before.children_system < 15


def test_a_sound_atlas_is_all_ok_and_its_presets_fit(atlas):
    findings = looked(atlas, preset="800T-A2-sft")
    assert {finding.state for finding in findings if finding.name not in ("acctransformer", "native")} == {"ok"}
    found = {finding.name: finding.found for finding in findings}
    assert found["driver"] == "driver 24.1.rc3"
    assert found["npu"] == "8 x 910B3, 64 GiB each (npu-smi 24.1.rc3)"
    assert found["hccn"] == "8 addresses by hccn_tool: 192.168.0.1, 192.168.1.1, ..."
    assert found["cann"].startswith("8.3.RC1 in ")
    assert found["devices"] == "MindSpore sees 8 x Ascend910B3"
    assert found["attention"].startswith("fused (ascend): a call with 256 tokens")
    assert [one.found for one in findings if one.name == "preset"] == [
        "8 x 910B of 8 here",
        "a device needs 39.1 GiB of the 58.0 GiB it may use",
    ]


@pytest.mark.parametrize(
    ("smi", "preset", "says"),
    [
        (None, "800-sft", "it is made for 910A, here are 910B"),
        (smi_table(("910B3",) * 4), "800T-A2-sft", "it needs 8 NPUs of this machine, which has 4"),
        (smi_table(memory=32768), "800T-A2-sft", "and the NPUs here have 32.0 GiB"),
    ],
)
def test_a_preset_for_another_machine_fails_with_the_reason(atlas, tmp_path, smi, preset, says):
    if smi is not None:
        put_smi_on_path(tmp_path, smi)
    count = smi.count("910B3") if smi else 8
    steps = {**SOUND, "devices": {**SOUND["devices"], "count": count}}
    failed = [finding for finding in looked(atlas, steps, preset=preset) if finding.state == "fail"]
    assert len(failed) == 1
    assert says in failed[0].found
    assert failed[0].fix


def test_an_npu_preset_on_a_machine_without_fails_but_its_memory_is_told(bare):
    steps = {**SOUND, "devices": {"device": "cpu", "count": 0, "names": [], "chip": None}}
    findings = [finding for finding in looked(bare, steps, preset="800T-A2-sft") if finding.name == "preset"]
    assert [finding.state for finding in findings] == ["fail", "ok"]
    assert "there is no NPU here" in findings[0].found


def test_memory_that_a_preset_lacks_is_told_with_the_plans_advice(bare):
    values = load_preset("cpu-tiny-sft", assignments=["machine.max_device_memory_gb=0.1"])
    findings = list(examine(values, bare, probe_of(SOUND)))
    last = findings[-1]
    assert (last.name, last.state) == ("preset", "fail")
    assert last.found.startswith("a device needs ")
    assert last.fix


def test_broken_parts_of_an_atlas_are_each_told_with_a_cure(atlas, tmp_path, monkeypatch):
    put_smi_on_path(tmp_path, smi_table(health="Warning"))
    put_tool_on_path(tmp_path / "bin", {0: "192.168.0.1"})
    monkeypatch.delenv("ASCEND_HOME_PATH")
    atlas.driver_node.unlink()
    steps = {**SOUND, "devices": {"device": "cpu", "count": 0, "names": [], "chip": None}}
    findings = looked(atlas, steps)
    bad = {finding.name: finding for finding in findings if finding.state in ("warn", "fail")}
    assert {name: finding.state for name, finding in bad.items()} == {
        "driver": "fail",
        "npu": "fail",
        "cann": "fail",
        "devices": "fail",
        "hccn": "warn",
    }
    assert all(finding.fix for finding in bad.values())
    assert bad["npu"].found == "NPU 1: health Warning"
    assert "no address of device 1 is known" in bad["hccn"].found
    assert "source " in bad["cann"].fix
    monkeypatch.setenv("SPARK13B_DEVICE", "cpu")
    assert only(looked(atlas, steps), "devices").state == "ok"


@pytest.mark.parametrize(
    ("output", "code", "says"),
    [
        (
            "dcmi model initialized failed, because the device is used. ret is -8020",
            1,
            "exit code 1 and shows no NPU: dcmi",
        ),
        ("", 0, "shows no NPU: nothing"),
    ],
)
def test_an_npu_smi_that_fails_is_told_with_its_own_words(atlas, tmp_path, output, code, says):
    put_smi_on_path(tmp_path, output, code)
    npu = only(looked(atlas), "npu")
    assert npu.state == "fail"
    assert says in npu.found


@pytest.mark.parametrize(("version", "state"), [("8.5.0", "ok"), ("7.0.RC1", "fail"), (None, "warn")])
def test_cann_is_compared_with_what_mindspore_accepts(atlas, tmp_path, version, state):
    path = tmp_path / "root" / "cann" / "compiler" / "version.info"
    path.write_text(f"Version={version}\n") if version else path.unlink()
    assert only(looked(atlas), "cann").state == state


def test_numbers_that_are_off_and_attention_that_is_not_fused_are_told(atlas):
    wrong = {**SOUND, "attention": {**SOUND["attention"], "difference": float("nan")}}
    assert only(looked(atlas, wrong), "attention").state == "fail"
    slow = {**SOUND, "attention": {**SOUND["attention"], "fused": False, "backend": "blocked", "reason": "no package"}}
    found = only(looked(atlas, slow), "attention")
    assert (found.state, found.found[:33]) == ("warn", "blocked, not fused (no package): ")


@pytest.mark.parametrize(
    ("steps", "end", "failed", "says"),
    [
        ([], "import os; os.kill(os.getpid(), 11)", "mindspore", "it crashed (SIGSEGV)"),
        ([], "import nothing_such", "mindspore", "it crashed (exit code 1): ModuleNotFoundError: No module named"),
        ([], "", "mindspore", "it said nothing"),
        (["mindspore"], "import os; os.abort()", "devices", "it crashed (SIGABRT)"),
        (["mindspore", "devices"], "import time; time.sleep(60)", "attention", "it did not end in time"),
        (
            ["mindspore", "devices"],
            """print('spark13b-probe {"step": "error", "at": "attention", "what": "RuntimeError: no kernel"}')""",
            "attention",
            "a tiny call failed: RuntimeError: no kernel",
        ),
    ],
)
def test_a_mindspore_that_crashes_or_hangs_costs_only_its_own_lines(bare, steps, end, failed, says):
    found, seconds = {step: SOUND[step] for step in steps}, 1 if "sleep" in end else 60
    findings = looked(bare, found, end, seconds=seconds)
    while seconds < 60 and only(findings, "mindspore").state == "fail":  # it was slow to begin
        seconds *= 4
        findings = looked(bare, found, end, seconds=seconds)
    bad = only(findings, failed)
    assert bad.state == "fail"
    assert says in bad.found
    assert findings[-1].name == "acctransformer"


def test_a_machine_that_starts_no_process_is_still_looked_at(bare):
    findings = list(examine(places=bare, probe=(str(bare.driver_node),)))
    assert only(findings, "mindspore").state == "fail"
    assert "no process can look at it: [Errno 2]" in only(findings, "mindspore").found
    assert findings[-1].name == "acctransformer"


def test_a_part_that_raises_is_a_finding_and_the_others_follow(bare, monkeypatch):
    def broken() -> int:
        raise RuntimeError("no such file")

    monkeypatch.setattr(machine, "usable_cores", broken)
    findings = looked(bare)
    assert only(findings, "cpu").found == "could not be looked at: RuntimeError: no such file"
    assert "memory" in states(findings)


def test_packages_that_are_missing_or_of_another_version_are_named(monkeypatch):
    asked = ["numpy>=99", "no-such-package>=1", "psutil", 'torch>=2; extra == "torch"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    found = list(installation.packages())
    assert [finding.state for finding in found] == ["fail", "fail"]
    assert found[0].found == f"numpy is {importlib.metadata.version('numpy')}, >=99 is needed"
    assert found[1].found == "no-such-package is not installed, >=1 is needed"


def test_the_port_that_is_taken_is_told_with_its_holder():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        [finding] = ports(shared=port)
    assert finding.state == "warn"
    assert (
        f"{port}, where several machines meet, is taken by {psutil.Process().name()} (process {os.getpid()})"
        in finding.found
    )
    assert "--master-port" in finding.fix


def test_two_chips_of_a_card_are_two_npus_by_their_physical_numbers():
    text = """\
| 0     Ascend910           | OK            | 166.1       37                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3160 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          2872 / 65536         |"""
    assert [(npu.number, npu.name, npu.memory) for npu in read_smi(text)] == [
        (0, "Ascend910", 65536),
        (1, "Ascend910", 65536),
    ]
    assert read_smi("") == ()


def test_the_command_shows_a_line_a_part_and_ends_with_1_when_something_is_broken(bare, monkeypatch, capsys):
    broken = [
        Finding("python", "ok", "3.11"),
        Finding("cann", "fail", "CANN is [not] installed", "install it"),
        Finding("hccn", "missing", "no NPU"),
    ]
    monkeypatch.setattr("spark13b.doctor.examine", lambda *values, **options: iter(broken))
    assert run(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok      python          3.11",
        "fail    cann            CANN is [not] installed",
        "                        -> install it",
        "missing hccn            no NPU",
    ]
    broken.pop(1)
    assert run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True


def test_a_preset_that_does_not_exist_is_wrong_input(capsys):
    assert run(["doctor", "--preset", "800T-A2-stf"]) == 2
    assert "800T-A2-sft" in capsys.readouterr().err
    assert run(["doctor", "--set", "train.steps=1"]) == 2


def test_ctrl_c_leaves_no_process(bare, tmp_path):
    script = f"""
import pathlib, sys, time
from spark13b.doctor import examine
code = "import os, pathlib, time; pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid())); time.sleep(60)"
list(examine(probe=(sys.executable, "-c", code)))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.wait(100)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
