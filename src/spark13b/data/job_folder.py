"""FILE.partial/, where a data job keeps what it has done, so that the same command goes on from there.

`job.json` says what the job is; `state.npz` how far it is, replaced whole each time a shard is finished.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spark13b.data.ledger import Ledger
from spark13b.data.manifest import WORK_SUFFIX, InputEntry
from spark13b.data.overlong import Pieces
from spark13b.errors import InputError
from spark13b.files import sync

_JOB, _STATE, _LOCK = "job.json", "state.npz", "lock"


@dataclass
class State:
    """How far a job is: the blocks that are in its finished files, and what is in none yet."""

    blocks: int = 0
    shards: list[int] = field(default_factory=list)  # rows of each finished file
    entries: list[InputEntry] = field(default_factory=list)  # input files that were read to their end
    ends: list[int] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    held_out: Ledger = field(default_factory=Ledger)
    formats: Counter[str] = field(default_factory=Counter)
    mapped: Counter[str] = field(default_factory=Counter)  # of fields under another name: records that have them
    lengths: Counter[int] = field(default_factory=Counter)  # examples by the bits of their number of tokens
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of the job's other files
    pending: Pieces | None = None
    finished: bool = False  # all rows are in files


class JobFolder:
    """The folder of one job; no second process uses it at the same time."""

    def __init__(self, output: Path, job: dict[str, Any]) -> None:
        """`job` says what decides on the rows: a job that differs in anything does not go on from here."""
        self.path = output.with_name(output.name + WORK_SUFFIX)
        self._job = json.loads(json.dumps(job))
        self._lock: Any = None

    def open(self, *, anew: bool, resume: bool) -> State:
        """Make the folder, or take it over; `anew`: without what is there; `resume`: only with what is there.

        Raises InputError when it holds another job's work, or another process works in it.
        """
        there = (self.path / _JOB).exists()
        if resume and not there:
            raise InputError("there is nothing to go on with", where=self.path, fix="leave --resume out")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("another spark13b works on this output", where=self.path, fix="wait for it") from None
        if there and not anew:
            self._check()
            return self._load()
        for path in self.path.iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _replace(self.path / _JOB, json.dumps(self._job, ensure_ascii=False, indent=2).encode())
        return State()

    def save(self, state: State) -> None:
        """Keep a state, whole or not at all."""
        values = {name: value for name, value in vars(state).items() if name != "pending"}
        values |= {name: asdict(values[name]) for name in ("ledger", "held_out")}
        values["entries"] = [entry.model_dump() for entry in state.entries]
        arrays = {"state": np.frombuffer(json.dumps(values).encode(), np.uint8)}
        if state.pending is not None:
            arrays |= {name: getattr(state.pending, name) for name in ("ids", "mask", "lengths")}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        _replace(self.path / _STATE, buffer.getvalue())

    def close(self, *, keep: bool) -> None:
        """Leave the folder; without `keep` it goes."""
        if not keep:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    @property
    def has_work(self) -> bool:
        """Whether going on from here saves anything."""
        return (self.path / _STATE).exists()

    def _load(self) -> State:
        path = self.path / _STATE
        if not path.exists():
            return State()
        with np.load(path) as file:
            values = json.loads(file["state"].tobytes())
            pending = Pieces(file["ids"], file["mask"], file["lengths"]) if "ids" in file else None
        for name in ("ledger", "held_out"):
            values[name] = Ledger(**values[name])
        for name in ("formats", "mapped"):
            values[name] = Counter(values.get(name))
        values["lengths"] = Counter({int(bits): count for bits, count in values["lengths"].items()})
        values["entries"] = [InputEntry(**entry) for entry in values["entries"]]
        return State(**values, pending=pending)

    def _check(self) -> None:
        """Raise InputError that names what differs from the job that was begun here."""
        begun = json.loads((self.path / _JOB).read_text(encoding="utf-8"))
        if begun == self._job:
            return
        different = [name for name in self._job if begun.get(name) != self._job[name]]
        what = different[0] if different else "job"
        change = f": {_change(begun.get(what), self._job.get(what))}" if different else ""
        raise InputError(
            f"what is half done here was begun with another {what}{change}",
            where=self.path,
            fix="give the same command to go on, or add --no-resume to begin anew",
        )


def _change(then: Any, now: Any) -> str:
    """What became of a value; of input files, [path, bytes, time] each, the first one that is not as it was."""
    if not isinstance(now, list) or not isinstance(then, list):
        return f"{_short(then)} then, {_short(now)} now"
    old = {path: state for path, *state in then}
    new = {path: state for path, *state in now}
    for path in (*new, *old):
        if path not in old or path not in new:
            return f"{path} {'was not among them' if path in new else 'is not among them now'}"
        if old[path] != new[path]:
            return f"{path} has changed"
    return "they come in another order, or another number of times"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(path.name + ".new")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)
