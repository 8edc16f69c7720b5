"""A stand-in for hccn_tool on PATH, with the output of the real one, and devices that fail."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# `-i N -ip -g` prints address and netmask; a device without an address, or that is not there, prints an error
_TOOL = """\
#!/bin/sh
echo "$*" >> "{log}"
[ "$1 $3 $4" = "-i -ip -g" ] || {{ echo "Invalid argument."; exit 22; }}
case "$2" in
{cases}
*) echo "[ERROR]Failed to get IP address of device $2." >&2; exit 1;;
esac
"""


def put_tool_on_path(folder: Path, addresses: Mapping[int, str], *, hangs: tuple[int, ...] = ()) -> Path:
    """Write hccn_tool into `folder`; it knows the devices of `addresses`. Returns a file with a line for each call."""
    folder.mkdir(exist_ok=True)
    log = folder / "calls"
    cases = [f"{n}) echo 'ipaddr:{address}'; echo 'netmask:255.255.0.0';;" for n, address in addresses.items()]
    cases += [f"{n}) exec sleep 60;;" for n in hangs]
    tool = folder / "hccn_tool"
    tool.write_text(_TOOL.format(log=log, cases="\n".join(cases)), encoding="utf-8")
    tool.chmod(0o755)
    return log


def path_with(folder: Path) -> str:
    """A PATH that begins with `folder`."""
    return os.pathsep.join([str(folder), "/usr/bin", "/bin"])
