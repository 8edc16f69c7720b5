"""Network addresses: of the NPUs of this machine, by hccn_tool or /etc/hccn.conf, and of the machine itself."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from spark13b.errors import InputError

HCCN_CONF = Path("/etc/hccn.conf")
_DRIVER_TOOLS = "/usr/local/Ascend/driver/tools"  # where the driver puts hccn_tool, which is often not on PATH
_TOOL_SECONDS = 10.0
_CONF_LINE = re.compile(r"\s*address_(\d+)\s*=\s*(\S+)\s*")


@dataclass(frozen=True)
class DeviceAddress:
    """The address of one NPU and who told it: `hccn_tool`, or the path of a configuration file."""

    device: int
    address: str
    source: str


def device_addresses(
    devices: Iterable[int], conf: Path = HCCN_CONF, seconds: float = _TOOL_SECONDS
) -> list[DeviceAddress]:
    """The addresses of the devices of these PHYSICAL numbers, in this order: hccn_tool's, else those in `conf`.

    hccn_tool may take so many seconds a device. Raises InputError that says what each of the two lacks.
    """
    tool = find_tool()
    told: list[DeviceAddress] = []
    silent: str | None = None if tool else "hccn_tool is not on PATH"
    written = _Conf(conf)
    for device in devices:
        problem = silent
        if tool is not None and silent is None:
            try:
                told.append(DeviceAddress(device, ask_tool(tool, device, seconds), "hccn_tool"))
                continue
            except TimeoutError as error:
                silent = problem = str(error)  # the other devices would wait as long
            except (OSError, ValueError) as error:
                problem = str(error)
        address = written.address(device)
        if address is None:
            raise _unknown(device, problem or "", written.problem(device), conf, tool is not None)
        told.append(DeviceAddress(device, address, str(conf)))
    return told


def find_tool() -> str | None:
    """The path of hccn_tool, on PATH or in the driver's folder."""
    return shutil.which("hccn_tool") or shutil.which("hccn_tool", path=_DRIVER_TOOLS)


def ask_tool(tool: str, device: int, seconds: float = _TOOL_SECONDS) -> str:
    """The address that `hccn_tool -i N -ip -g` tells of device N, a physical number.

    Raises TimeoutError when it does not answer, OSError when it does not start, ValueError when it tells none. All
    three have a message for people.
    """
    call = f"hccn_tool -i {device} -ip -g"
    try:
        result = subprocess.run(
            [tool, "-i", str(device), "-ip", "-g"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"'{call}' did not answer within {seconds:g} s") from None
    except OSError as error:
        raise OSError(f"'{call}' does not start: {error.strerror}") from None
    lines = (result.stdout + b"\n" + result.stderr).decode(errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    for line in lines:
        name, _, value = line.partition(":")  # an IPv6 address has more of them
        if name.strip() == "ipaddr" and result.returncode == 0:
            address = as_address(value)
            if address is None:
                raise ValueError(f"'{call}' tells {value.strip()!r}, which is no address")
            return address
    said = repr(lines[0]) if lines else "nothing"
    raise ValueError(f"'{call}' ended with exit code {result.returncode} and said {said}")


def as_address(text: str) -> str | None:
    """The IPv4 or IPv6 address in `text` in its usual form, without zone and prefix length, or None."""
    try:
        return str(ipaddress.ip_address(re.split(r"[%/]", text.strip(), maxsplit=1)[0]))
    except ValueError:
        return None


def server_address(wanted: str | None) -> str:
    """The address that names this machine in a table: `wanted`, else the one it reaches others from.

    Raises InputError when `wanted` is no address, or the machine has none that others could reach.
    """
    if wanted is not None:
        address = as_address(wanted)
        if address is None:
            raise InputError(
                f"{wanted!r} is no IP address", where="--server-ip", fix="give this machine's address, e.g. 10.0.0.1"
            )
        return address
    for address in _own_addresses():
        if not ipaddress.ip_address(address).is_loopback:
            return address
    raise InputError(
        "this machine has no address that others could reach it by",
        where="--server-ip",
        fix="give the address that the other machines know it by: --server-ip 10.0.0.1",
    )


def _own_addresses() -> Iterable[str]:
    """The source address of what leaves this machine (nothing is sent), then what its name stands for."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address for documentation: a datagram socket only looks up the route
        yield str(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        yield socket.gethostbyname(socket.gethostname())


class _Conf:
    """The lines `address_N=IP` of hccn.conf, read when they are first asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._addresses: dict[int, str] | None = None
        self._unreadable: str | None = None

    def address(self, device: int) -> str | None:
        value = self._read().get(device)
        return None if value is None else as_address(value)

    def problem(self, device: int) -> str:
        """Why there is no address."""
        value = self._read().get(device)
        if self._unreadable is not None:
            return f"{self._path} cannot be read: {self._unreadable}"
        if value is None:
            return f"{self._path} has no line address_{device}="
        return f"{self._path} has address_{device}={value}, which is no address"

    def _read(self) -> dict[int, str]:
        if self._addresses is None:
            self._addresses = {}
            try:
                lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError as error:
                self._unreadable = error.strerror or str(error)
                lines = []
            for line in lines:
                match = _CONF_LINE.fullmatch(line)
                if match:
                    self._addresses[int(match[1])] = match[2]
        return self._addresses


def _unknown(device: int, tool_problem: str, conf_problem: str, conf: Path, has_tool: bool) -> InputError:
    if has_tool:
        cure = (
            f"see what 'hccn_tool -i {device} -ip -g' says; an address is set with "
            f"'hccn_tool -i {device} -ip -s address A.B.C.D netmask 255.255.0.0'. Or write address_{device}=A.B.C.D "
            f"into {conf}"
        )
    else:
        cure = (
            f"install the Ascend driver and run 'export PATH=$PATH:{_DRIVER_TOOLS}'; in a container mount that folder, "
            f"or {HCCN_CONF}, from the machine"
        )
    return InputError(f"no address of device {device} is known: {tool_problem}; {conf_problem}", where=conf, fix=cure)
