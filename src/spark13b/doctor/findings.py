"""What was found of one part of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# missing: not there, and nothing on this machine needs it; fail: something that it needs is broken
State = Literal["ok", "warn", "missing", "fail"]


@dataclass(frozen=True)
class Finding:
    """A part's name and state, what was found in one sentence, and what to do about it (empty: nothing)."""

    name: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Places:
    """Where the parts of an Ascend installation are."""

    driver_node: Path = Path("/dev/davinci_manager")
    driver_version: Path = Path("/usr/local/Ascend/driver/version.info")
    cann: tuple[Path, ...] = (
        Path("/usr/local/Ascend/cann"),
        Path("/usr/local/Ascend/ascend-toolkit/latest"),
        Path("/usr/local/Ascend/latest"),
    )
    hccn_conf: Path = Path("/etc/hccn.conf")
