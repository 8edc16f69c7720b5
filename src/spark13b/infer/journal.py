"""Finished answers on their way to a file: none is asked for twice, whatever ends the process.

They are kept in FILE.partial as they come. When all are there FILE is written whole, in the order of the prompts, and
FILE.partial goes.
"""

from __future__ import annotations

import json
from pathlib import Path

from spark13b import journal
from spark13b.files import replacing


class Journal(journal.Journal):
    """The answers to `count` prompts for `target`; `identity` tells the prompts, the options and the model.

    with Journal(target, identity, count) as journal:
        for index in journal.missing():
            journal.add(index, record)
        journal.finish()
    """

    def __init__(self, target: Path, identity: str, count: int, *, force: bool = False) -> None:
        """Open it, with what an earlier process has left. Raises InputError when that answers other prompts."""
        super().__init__(target.with_name(target.name + ".partial"), identity, force=force)
        self._target, self._count = target, count

    @property
    def done(self) -> int:
        """How many answers there are."""
        return len(self)

    def missing(self) -> list[int]:
        """The prompts without an answer, in order."""
        return [index for index in range(self._count) if index not in self]

    def finish(self) -> None:
        """Write the target. Raises JobError when the disk is full; the answers stay in the journal then."""
        assert not self.missing()
        with replacing(self._target, force=self._force) as draft, draft.open("wb") as lines:
            for index in range(self._count):
                lines.write(json.dumps(self[index], ensure_ascii=False).encode() + b"\n")
        self.remove()
