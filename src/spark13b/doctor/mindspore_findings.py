"""What the probe told, as findings."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from spark13b.doctor.findings import Finding
from spark13b.doctor.mindspore_process import ProbeReport

_INSTALL = "install spark13b again: pip install --constraint constraints.txt ."


def mindspore(report: ProbeReport, npu: bool) -> Iterator[Finding]:
    """MindSpore itself, the devices that it sees, and attention; `npu`: this machine has NPUs."""
    steps = report.steps
    if "mindspore" not in steps:
        if importlib.util.find_spec("mindspore") is None:
            yield Finding("mindspore", "fail", "not installed", _INSTALL)
        else:
            fix = f"run 'python -c \"import mindspore\"' for the whole message, or {_INSTALL}"
            yield Finding("mindspore", "fail", f"cannot be imported: {report.problem}", fix)
        return
    facts = steps["mindspore"]
    yield Finding("mindspore", "ok", f"{facts['version']}, imported in {facts['seconds']:.1f} s")
    if "devices" not in steps:
        yield Finding("devices", "fail", f"MindSpore was asked for its devices: {report.problem}", _log_fix())
        return
    yield _devices(steps["devices"], npu)
    if "attention" not in steps:
        yield Finding("attention", "fail", f"a tiny call failed: {report.problem}", _log_fix())
        return
    yield _attention(steps["attention"], npu and steps["devices"]["device"] == "ascend")


def _devices(facts: dict[str, object], npu: bool) -> Finding:
    if facts["device"] == "ascend":
        names = facts["names"]
        assert isinstance(names, list)
        return Finding("devices", "ok", f"MindSpore sees {facts['count']} x {', '.join(dict.fromkeys(names))}")
    if not npu:
        return Finding("devices", "ok", "the CPU")
    if os.environ.get("SPARK13B_DEVICE", "").lower() == "cpu":
        return Finding("devices", "ok", "the CPU, as SPARK13B_DEVICE says; the NPUs are left alone")
    fix = (
        "source CANN's set_env.sh, and install the MindSpore wheel that supports Ascend; "
        "then 'python -c \"import mindspore; mindspore.run_check()\"' says what is wrong"
    )
    return Finding("devices", "fail", "MindSpore sees no NPU, though this machine has some", fix)


def _attention(facts: dict[str, object], npu: bool) -> Finding:
    difference, allowed = float(str(facts["difference"])), float(str(facts["allowed"]))
    call = f"a call with {facts['tokens']} tokens is within {difference:.0e} of exact, {facts['seconds']:.1f} s"
    if not difference <= allowed:
        fix = "set model.attention_backend to plain or blocked, and report this"
        return Finding("attention", "fail", f"{facts['backend']} computes wrong numbers: off by {difference:.0e}", fix)
    if facts["fused"]:
        return Finding("attention", "ok", f"fused ({facts['backend']}): {call}")
    if npu:
        found = f"blocked, not fused ({facts['reason']}): {call}"
        return Finding("attention", "warn", found, "mend what the reason names: the blocked one is right, but slow")
    return Finding("attention", "ok", f"blocked, for the fused one needs an NPU: {call}")


def _log_fix() -> str:
    return "run the command again with GLOG_v=1 in the environment; MindSpore then writes what it does to stderr"
