"""The ports that msrun needs to bring processes together."""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from spark13b.cluster.msrun import SHARED_PORT, free_port, try_port
from spark13b.doctor.findings import Finding
from spark13b.errors import InputError


def ports(address: str = "127.0.0.1", shared: int = SHARED_PORT) -> Iterator[Finding]:
    """A free port for processes on one machine, and the one that several machines meet at."""
    try:
        other = free_port(address)
    except InputError as error:
        yield Finding("ports", "fail", error.what, "end the programs that listen at so many ports")
        return
    try:
        try_port(address, shared)
    except OSError as error:
        found = f"{shared}, where several machines meet, is taken{_holder(shared)} ({error.strerror})"
        yield Finding("ports", "warn", found, f"end that program, or give --master-port {other} on all machines")
    else:
        yield Finding("ports", "ok", f"{shared} is free for several machines, {other} and others for one")


def _holder(port: int) -> str:
    """Who listens there, as far as this user may know."""
    try:
        for one in psutil.net_connections("tcp"):
            if one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN and one.pid:
                return f" by {psutil.Process(one.pid).name()} (process {one.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
