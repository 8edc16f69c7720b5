"""Driver, NPUs, CANN, acctransformer and the NPUs' network addresses, without MindSpore."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spark13b.cluster.table.addresses import device_addresses
from spark13b.doctor.findings import Finding, Places
from spark13b.errors import InputError

_SMI_SECONDS = 15.0
_HCCN_SECONDS = 3.0
_HBM = re.compile(r"(\d+)\s*/\s*(\d+)\s*$")
_DRIVER_FIX = "install the Ascend driver; in a container pass the devices through (--device=/dev/davinci0 and so on)"


@dataclass(frozen=True)
class Npu:
    """A row of `npu-smi info`. Memory in MB."""

    number: int  # physical
    name: str  # 910B3, for example
    health: str
    memory: int | None

    @property
    def chip(self) -> str:
        """910A or 910B, the presets' names: the second also for what followed it."""
        return "910A" if re.fullmatch(r"(Ascend)?\s*910(A|Pro.*|Premium.*)?", self.name) else "910B"


@dataclass(frozen=True)
class SmiReport:
    """What `npu-smi info` said: its version and the NPUs, or why it said nothing. None: there is no npu-smi."""

    version: str | None
    npus: tuple[Npu, ...]
    problem: str | None


def ask_smi(seconds: float = _SMI_SECONDS) -> SmiReport | None:
    """Run `npu-smi info`."""
    tool = shutil.which("npu-smi") or shutil.which("npu-smi", path="/usr/local/bin:/usr/local/sbin")
    if tool is None:
        return None
    try:
        result = subprocess.run([tool, "info"], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return SmiReport(None, (), f"'npu-smi info' did not answer within {seconds:g} s")
    except OSError as error:
        return SmiReport(None, (), f"'npu-smi info' does not start: {error.strerror}")
    text = result.stdout.decode(errors="replace")
    version = re.search(r"npu-smi\s+(\S+)", text)
    npus = read_smi(text)
    problem = None
    if result.returncode != 0 or not npus:
        said = [line.strip() for line in (result.stderr.decode(errors="replace") + text).splitlines() if line.strip()]
        problem = (
            f"'npu-smi info' ended with exit code {result.returncode} and shows no NPU: {(said or ['nothing'])[0]}"
        )
    return SmiReport(version[1] if version else None, npus, problem)


def read_smi(text: str) -> tuple[Npu, ...]:
    """The NPUs in the table of `npu-smi info`: two rows each, number, name and health, then chip, bus and memory."""
    npus: list[Npu] = []
    head: tuple[int, str, str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 3:
            continue
        first = cells[0].split()
        if re.fullmatch(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f:.]+", cells[1]):
            if head is not None and first and all(word.isdigit() for word in first):
                used = _HBM.search(cells[2])
                number = int(first[1]) if len(first) > 1 else head[0]  # where a card has two chips: the physical one
                npus.append(Npu(number, head[1], head[2], int(used[2]) if used else None))
        elif len(first) >= 2 and first[0].isdigit() and not cells[1].isdigit():
            head = int(first[0]), " ".join(first[1:]), cells[1]
    return tuple(npus)


def driver(places: Places, smi: SmiReport | None) -> Iterator[Finding]:
    """The driver and the NPUs that it shows, each with its health."""
    there = places.driver_node.exists()
    version = _version(places.driver_version, "Version")
    if smi is None and not there:
        yield Finding("driver", "missing", "no Ascend driver and no npu-smi: this machine computes on its CPU")
        return
    named = f"driver {version}" if version else "a driver"
    if there:
        yield Finding("driver", "ok", named)
    else:
        yield Finding("driver", "fail", f"npu-smi is here, {places.driver_node} is not", _DRIVER_FIX)
    if smi is None:
        fix = "add the folder of npu-smi to PATH (/usr/local/bin, as the driver installs it); in a container mount it"
        yield Finding("npu", "warn", "npu-smi is not on PATH", fix)
        return
    if smi.problem is not None:
        yield Finding("npu", "fail", smi.problem, "run 'npu-smi info'; the driver's log is in /var/log/npu")
        return
    ill = [npu for npu in smi.npus if npu.health != "OK"]
    names = ", ".join(dict.fromkeys(npu.name for npu in smi.npus))
    sizes = {npu.memory for npu in smi.npus if npu.memory is not None}
    each = f", {min(sizes) / 1024:.0f} GiB each" if sizes else ""
    found = f"{len(smi.npus)} x {names}{each} (npu-smi {smi.version or 'of unknown version'})"
    for npu in ill:
        fix = f"see 'npu-smi info -t health -i {npu.number}'; keep the device out with ASCEND_RT_VISIBLE_DEVICES"
        yield Finding("npu", "fail", f"NPU {npu.number}: health {npu.health}", fix)
    if not ill:
        yield Finding("npu", "ok", found)


def cann(places: Places, needed: bool, supported: Sequence[str]) -> Iterator[Finding]:
    """CANN: the one that the environment names, else one that is installed; `supported` by MindSpore, as 8.5."""
    home = os.environ.get("ASCEND_HOME_PATH")
    installed = next((place for place in places.cann if place.is_dir()), None)
    if home is None:
        if installed is not None:
            fix = f"run 'source {_set_env(installed)}' before spark13b, or put it into ~/.bashrc"
            yield Finding("cann", "fail" if needed else "warn", f"{installed} is here, its environment is not set", fix)
        elif needed:
            fix = "install the CANN release that MindSpore asks for" + (
                f": {', '.join(supported)}" if supported else ""
            )
            yield Finding("cann", "fail", "CANN is not installed", fix)
        else:
            yield Finding("cann", "missing", "not installed, and there is no NPU that needs it")
        return
    path = Path(home)
    if not path.is_dir():
        fix = "correct ASCEND_HOME_PATH, or source CANN's set_env.sh again"
        yield Finding("cann", "fail" if needed else "warn", f"ASCEND_HOME_PATH names {home}, which is not there", fix)
        return
    version = _version(path / "compiler" / "version.info", "Version")
    if version is None:
        yield Finding("cann", "warn", f"{path}, of unknown version", "compare it with what MindSpore asks for")
    elif supported and ".".join(version.split(".")[:2]) not in supported:
        fix = f"install a release of {', '.join(supported)}"
        yield Finding("cann", "fail" if needed else "warn", f"{version} in {path}: MindSpore does not know it", fix)
    else:
        yield Finding("cann", "ok", f"{version} in {path}")


def acctransformer(chip: str | None) -> Iterator[Finding]:
    """The package with the 910A's fused attention; `chip` of this machine."""
    there = importlib.util.find_spec("acctransformer") is not None
    if there:
        yield Finding("acctransformer", "ok", "installed" + ("" if chip == "910A" else "; only the 910A uses it"))
    elif chip == "910A":
        fix = "install it as its page says; without it long texts are slow, but right"
        yield Finding("acctransformer", "warn", "not installed: attention is computed block by block", fix)
    else:
        yield Finding("acctransformer", "missing", "not installed; only the 910A needs it")


def addresses(places: Places, needed: bool, npus: Sequence[Npu]) -> Iterator[Finding]:
    """The network addresses of the NPUs, which several machines need, and rank tables."""
    if not needed:
        yield Finding("hccn", "missing", "there is no NPU that has an address")
        return
    numbers = [npu.number for npu in npus] or [0]
    try:
        found = device_addresses(numbers, places.hccn_conf, _HCCN_SECONDS)
    except InputError as error:
        yield Finding("hccn", "warn", f"{error.what}; several machines need it", error.fix or "")
        return
    sources = " and ".join(dict.fromkeys(one.source for one in found))
    shown = ", ".join(one.address for one in found[:2]) + (", ..." if found[2:] else "")
    alike = len(found) - len({one.address for one in found})
    if alike:
        fix = "give each its own: hccn_tool -i N -ip -s address A.B.C.D netmask 255.255.0.0"
        yield Finding("hccn", "warn", f"{alike + 1} NPUs have the same address ({shown}), by {sources}", fix)
    else:
        yield Finding("hccn", "ok", f"{len(found)} addresses by {sources}: {shown}")


def _version(path: Path, key: str) -> str | None:
    """The value of a line `key=value`."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition("=")
        if name.strip() == key:
            return value.strip()
    return None


def _set_env(cann_folder: Path) -> Path:
    """CANN's script that sets its environment, wherever this release has it."""
    for place in (cann_folder / "set_env.sh", cann_folder.parent / "set_env.sh"):
        if place.is_file():
            return place
    return cann_folder / "set_env.sh"
