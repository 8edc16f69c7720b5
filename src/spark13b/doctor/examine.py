"""All parts of the machine, one after the other; none of them can stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from spark13b.config import Preset
from spark13b.doctor import ascend, installation, machine
from spark13b.doctor.findings import Finding, Places
from spark13b.doctor.fit import fit
from spark13b.doctor.mindspore_findings import mindspore
from spark13b.doctor.mindspore_process import PROBE, ProbeReport, probing
from spark13b.doctor.ports import ports


def examine(
    preset: Preset | None = None,
    places: Places = Places(),  # frozen
    probe: Sequence[str] = PROBE,
    seconds: float = 60.0,
) -> Iterator[Finding]:
    """The findings, each as soon as it is there. `probe` looks at MindSpore and may take so many seconds.

    What goes wrong while a part is looked at is a finding, too; nothing is raised.
    """
    with ExitStack() as stack:
        running, refused = None, ""
        try:
            running = stack.enter_context(probing(probe, seconds))
        except OSError as error:  # no process, or no folder for temporary files
            refused = f"no process can look at it: {error}"
        yield from _guarded("python", installation.python)
        yield from _guarded("packages", installation.packages)
        yield from _guarded("native", installation.native)
        yield from _guarded("cpu", machine.cpu)
        yield from _guarded("memory", machine.memory)
        yield from _guarded("disk", machine.disk)
        yield from _guarded("ports", ports)
        smi = ascend.ask_smi()
        npus = smi.npus if smi is not None else ()
        has_npu = bool(npus) or places.driver_node.exists()
        yield from _guarded("driver", lambda: ascend.driver(places, smi))
        yield from _guarded("hccn", lambda: ascend.addresses(places, has_npu, npus))
        report = running.report() if running is not None else ProbeReport({}, "mindspore", refused)
        supported = report.steps.get("mindspore", {}).get("cann", [])
        seen = report.steps.get("devices", {})
        chip = seen.get("chip") or (npus[0].chip if npus else None)
        yield from _guarded("cann", lambda: ascend.cann(places, has_npu, supported))
        yield from _guarded("mindspore", lambda: mindspore(report, has_npu))
        yield from _guarded("acctransformer", lambda: ascend.acctransformer(chip))
        if preset is not None:
            count = int(seen.get("count", 0))
            yield from _guarded("preset", lambda: fit(preset, npus, seen.get("device"), count, chip))


def _guarded(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except Exception as error:  # a part that nobody thought of must not hide the rest
        what = f"could not be looked at: {type(error).__name__}: {error}"
        yield Finding(name, "warn", what, "run with --debug, and report this")
