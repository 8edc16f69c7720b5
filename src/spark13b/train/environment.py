"""What a run ran on and with: written into its folder at every start. And the memory it has now."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from spark13b.data.manifest import first_file, manifest_path, whole_output
from spark13b.data.mindrecord_file import read_header
from spark13b.files import write_text
from spark13b.run_folder import RunFolder
from spark13b.train.job import Job

_PACKAGES = ("spark13b", "mindspore", "numpy", "sentencepiece", "safetensors", "pydantic", "tensorboardX")


def record_start(run: RunFolder, job: Job, step: int) -> None:
    """Add this start of the run, after `step` steps, to its environment.json."""
    starts = [*starts_of(run), {"step": step, **environment(job)}]
    write_text(run.environment, json.dumps({"starts": starts}, ensure_ascii=False, indent=2) + "\n", force=True)


def starts_of(run: RunFolder) -> list[dict[str, Any]]:
    """The starts of a run that its environment.json knows of, oldest first."""
    try:
        starts = json.loads(run.environment.read_text(encoding="utf-8"))["starts"]
        return [start for start in starts if isinstance(start, dict)]
    except (OSError, ValueError, KeyError, TypeError):  # a run of an older release, or what a person made of the file
        return []


def environment(job: Job) -> dict[str, Any]:
    """Date, command, versions, machine and data of this process, for JSON."""
    from spark13b.model.device import device

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "load": None if job.load is None else str(job.load.absolute()),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "host": platform.node(),
        "system": platform.platform(),
        "device": device(),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count()},
        "memory_bytes": psutil.virtual_memory().total,
        "data": _file(job.data),
        "eval_data": _file(job.eval_data),
    }


def same_rows(start: dict[str, Any], rows: Path) -> bool:
    """Whether rows are those that an earlier start told of; also where it or they have no manifest to tell by."""
    before = start.get("data")
    hashes = (before.get("manifest_sha256") if isinstance(before, dict) else None, _manifest_hash(rows))
    return None in hashes or hashes[0] == hashes[1]


def memory_now() -> int:
    """Bytes that this process holds: of the NPU's memory on an Ascend, else resident."""
    from spark13b.model.device import device

    if device() == "ascend":
        import mindspore

        return int(mindspore.runtime.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def _file(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    first = first_file(path).resolve()  # several files may stand behind a name that none of them has
    size = sum(first.with_name(name).stat().st_size for name in read_header(first).files)
    return {"path": str(path.absolute()), "bytes": size, "manifest_sha256": _manifest_hash(path)}


def _manifest_hash(rows: Path) -> str | None:
    manifest = manifest_path(whole_output(rows))
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
