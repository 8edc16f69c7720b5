"""A launcher as a process of its own: `python launching.py KIND LOG_DIR BEHAVIOUR [JSON]` prints how it ended."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spark13b.cluster.launch import Launch, launch
from spark13b.cluster.msrun import MsrunWorkers
from spark13b.cluster.rank_table import table_workers
from spark13b.errors import SparkError

JOB = Path(__file__).with_name("job.py")


class Listener:
    """A Progress that keeps what it is told, and prints the notes."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def note(self, text: str) -> None:
        self.heard.append(text)
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def track(self, what: str, total: float | None = None, unit: str = "") -> Any:
        self.heard.append((what, total, unit))
        yield self
        self.heard.append("end")

    def advance(self, amount: float = 1) -> None:
        self.heard.append(amount)

    def show(self, **fields: str) -> None:
        self.heard.append(fields)


def write_table(folder: Path, servers: dict[str, int]) -> Path:
    """A rank table of servers with so many devices each; devices count from 2."""
    ranks = iter(range(100))
    table = {
        "version": "1.0",
        "server_count": str(len(servers)),
        "server_list": [
            {
                "server_id": address,
                "device": [
                    {"device_id": str(n + 2), "device_ip": f"192.168.{server}.{n}", "rank_id": str(next(ranks))}
                    for n in range(devices)
                ],
                "host_nic_ip": "reserve",
            }
            for server, (address, devices) in enumerate(servers.items())
        ],
        "status": "completed",
    }
    path = folder / "table.json"
    path.write_text(json.dumps(table, indent=4), encoding="utf-8")
    return path


def start(kind: str, log_dir: Path, behaviour: str, progress: Listener, **options: Any) -> dict[str, Any]:
    """Launch two workers (by msrun, `options` as MsrunWorkers has them) that behave like this."""
    workers: Any
    if kind == "table":
        log_dir.parent.mkdir(exist_ok=True)
        workers = table_workers(write_table(log_dir.parent, {"127.0.0.1": 2}))
    else:
        workers = MsrunWorkers(**{"nproc": 2, **options})
    return launch(Launch(workers, log_dir), [str(JOB), behaviour], progress)


if __name__ == "__main__":
    kind, folder, behaviour, more = [*sys.argv[1:], "{}"][:4]
    try:
        outcome: dict[str, Any] = {"result": start(kind, Path(folder), behaviour, Listener(), **json.loads(more))}
    except SparkError as error:
        outcome = {"what": error.what, "code": error.exit_code}
    except KeyboardInterrupt:
        outcome = {"what": "interrupted", "code": 1}
    print(json.dumps(outcome))
