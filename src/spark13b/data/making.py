"""One pass over encoded blocks: bad records, duplicates, what is held out, rows, files. It can be gone on with."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spark13b.data.blocks import Block
from spark13b.data.duplicates import Seen
from spark13b.data.encoding import Encoded, Examples, Kind
from spark13b.data.engine import Encode
from spark13b.data.fields import FIELDS
from spark13b.data.job_folder import JobFolder, State
from spark13b.data.ledger import Ledger
from spark13b.data.overlong import Pieces, fitted
from spark13b.data.packing import Packer, Rows, Shape, packer
from spark13b.data.records import no_records
from spark13b.data.shards import Shards, errors_path
from spark13b.data.sources import Sources
from spark13b.data.spool import Spool
from spark13b.errors import InputError, JobError, nearest

if TYPE_CHECKING:
    from spark13b.data.preprocess import Options

_BAD, _SEEN, _HELD = "errors.jsonl", "seen.bin", "held-out.bin"


class Making:
    """Makes rows of blocks, in order, from `state` on; `shards` are the files, `held_shards` those for evaluation."""

    def __init__(self, folder: JobFolder, state: State, kind: Kind, shape: Shape, options: Options) -> None:
        self._folder, self._state, self._kind, self._shape, self._options = folder, state, kind, shape, options
        self.columns: tuple[str, ...] = ("input_ids", "loss_mask")
        if shape.documents:
            self.columns += ("document_ids",)
        path, sizes = folder.path, state.sizes
        self.shards = Shards(path / "rows", self.columns, options.shard_bytes, state.shards)
        self.held_shards: Shards | None = None
        self._packer = self._new_packer()
        if state.pending is not None:
            self._packer.pending = state.pending
        self._bad: Any = (path / _BAD).open("r+b" if (path / _BAD).exists() else "w+b")
        self._bad.truncate(sizes.get(_BAD, 0))
        self._bad.seek(0, 2)
        self._seen = Seen(path / _SEEN, sizes.get(_SEEN, 0)) if options.deduplicate else None
        self._held = Spool(path / _HELD, sizes.get(_HELD, 0)) if options.held_out else None
        if state.finished and self._held is not None:
            self.held_shards = Shards(path / "held", self.columns, options.shard_bytes, [state.held_out.rows])

    @property
    def tokens(self) -> int:
        """Of all examples that were kept, lost ones too."""
        return self._state.ledger.tokens + self._state.ledger.lost_tokens

    def close(self) -> None:
        """Let go of the files."""
        for part in (self._bad, self._seen, self._held):
            if part is not None:
                part.close()
        for shards in (self.shards, self.held_shards):
            if shards is not None:
                shards.abandon()

    def take(self, encode: Encode, sources: Sources) -> Iterator[int]:
        """Take all blocks that are in no finished file yet; yields after each the bytes read up to it.

        Raises InputError as `sources` does.
        """
        state, passed = self._state, _Passed()
        taken: deque[tuple[Path, int]] = deque()
        failed: list[InputError] = []

        def blocks() -> Iterator[Block]:
            try:
                for block in sources.blocks(passed, state.blocks):
                    taken.append((block.path, passed.bytes))
                    yield block
            except InputError as error:  # told when all that was read before it has been looked at
                failed.append(error)

        read: dict[Path, int] = {}
        for encoded in encode(blocks()):
            path, size = taken.popleft()
            read[path] = read.get(path, 0) + encoded.read
            self._take(encoded, path)
            state.blocks += 1
            if self.shards.full:
                self.shards.close()
                self._save(sources)
            yield size
        if failed:
            raise failed[0]
        for path, records in read.items():
            if not records:
                raise no_records(path)

    def finish(self, sources: Sources) -> None:
        """Write the last rows. Raises InputError when none came out."""
        state, options = self._state, self._options
        for ours, theirs in options.names.items():
            if not state.mapped[theirs]:  # a slip of the pen would let other fields be learned in silence
                near = nearest(theirs, (*state.ledger.ignored_fields, *FIELDS["alpaca"], "text"))
                raise InputError(
                    f"no record has the field '{theirs}'",
                    where=f"--map {ours}={theirs}",
                    fix=f"did you mean '{near}'?" if near else "name a field of the files, or leave the option out",
                )
        self._write(self._packer.finish(), self.shards, state.ledger)
        self.shards.close()
        if not state.ledger.rows:
            raise InputError(
                f"no row came out of {state.ledger.read:,} records: {state.ledger.dropped:,} are longer than a row of "
                f"{self._shape.row_length:,} tokens, {state.ledger.bad:,} bad, {state.ledger.held_out:,} held out",
                where=sources.paths[0],
                fix="raise --seq-length, or use --overlong split",
            )
        state.ledger.close(self._shape.row_length)
        if self._held is not None:
            if not state.held_out.kept:
                raise InputError(
                    f"none of {state.ledger.read:,} records was held out",
                    where="--eval-fraction",
                    fix="give a larger one, or leave it out",
                )
            self.held_shards = Shards(self._folder.path / "held", self.columns, 1 << 62)
            packing = self._new_packer()
            for pieces in self._held.read():
                self._write(packing.add(pieces), self.held_shards, state.held_out)
            self._write(packing.finish(), self.held_shards, state.held_out)
            self.held_shards.close()
            state.held_out.close(self._shape.row_length)
        if state.ledger.bad > options.max_errors:
            raise self._too_many()
        self._packer = self._new_packer()
        self._save(sources, last=True)

    def publish_bad(self, output: Path) -> None:
        """Let the list of bad records appear, if there are any."""
        draft = self._folder.path / _BAD
        if self._state.ledger.bad and draft.exists():
            self._bad.flush()
            draft.replace(errors_path(output))

    def _new_packer(self) -> Packer:
        return packer(None if self._kind == "pretrain" else self._options.packing, self._shape)

    def _take(self, encoded: Encoded, path: Path) -> None:
        state, ledger = self._state, self._state.ledger
        ledger.read += encoded.read
        for name, count in sorted(encoded.ignored_fields.items()):  # sets have another order in each process
            ledger.ignored_fields[name] = ledger.ignored_fields.get(name, 0) + count
        state.formats.update(encoded.formats)
        state.mapped.update(encoded.mapped)
        self._note_bad(encoded.flaws)
        examples = encoded.examples
        if self._seen is not None:
            new = self._seen.first_time(examples.digests)
            ledger.duplicates += int((~new).sum())
            examples = examples if new.all() else examples.chosen(new)
        if self._held is not None:
            apart = _shares(examples) < self._options.held_out
            held, examples = examples.chosen(apart), examples.chosen(~apart)
            ledger.held_out += len(held)
            state.held_out.read += len(held)
            self._held.add(self._pieces(held, path, state.held_out))
        bits, counts = np.unique(np.frexp(examples.lengths.astype(np.float64))[1], return_counts=True)
        state.lengths.update(dict(zip(bits.tolist(), counts.tolist(), strict=True)))
        self._write(self._packer.add(self._pieces(examples, path, ledger)), self.shards, ledger)

    def _pieces(self, examples: Examples, path: Path, ledger: Ledger) -> Pieces:
        """What is to be packed of the examples, all told to the ledger."""
        ledger.characters += int(examples.characters.sum())
        ledger.empty += int(examples.empty.sum())
        if self._kind == "pretrain":
            ledger.kept += len(examples)
            ledger.packed += len(examples)
            ledger.tokens += len(examples.ids)
            return Pieces(examples.ids, examples.mask, examples.lengths)
        return fitted(examples, path, self._shape.row_length, self._options.overlong, ledger)

    def _note_bad(self, flaws: list[InputError]) -> None:
        """Stop at the first bad record, or list it."""
        if not flaws:
            return
        if self._options.on_error == "fail":
            raise flaws[0]
        for flaw in flaws:
            line = {"file": flaw.where, "line": flaw.line, "error": flaw.what}
            self._bad.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._state.ledger.bad += len(flaws)
        if self._state.ledger.bad > self._options.max_errors:
            raise self._too_many(flaws[-1])

    def _too_many(self, last: InputError | None = None) -> JobError:
        return JobError(
            f"more than {self._options.max_errors:,} records are bad" + (f", the last: {last.what}" if last else ""),
            where=None if last is None else f"{last.where}:{last.line}",
            fix="mend the input, or raise --max-errors",
        )

    def _write(self, rows: Rows | None, shards: Shards, ledger: Ledger) -> None:
        if rows is not None:
            shards.write(rows)
            ledger.rows += len(rows)
            ledger.learned_tokens += int(rows.loss_mask.sum())

    def _save(self, sources: Sources, last: bool = False) -> None:
        """Keep how far the work is; what was written is on the disk already."""
        state = self._state
        whole = sum(end <= state.blocks for end in sources.ends)
        state.entries, state.ends = sources.entries[:whole], sources.ends[:whole]
        state.shards, state.pending, state.finished = list(self.shards.rows), self._packer.pending, last
        self._bad.flush()
        state.sizes = {_BAD: self._bad.tell()}
        if self._seen is not None:
            state.sizes[_SEEN] = self._seen.size
        if self._held is not None:
            state.sizes[_HELD] = self._held.size
        self._folder.save(state)


class _Passed:
    """A meter that keeps the number of bytes."""

    bytes = 0

    def advance(self, amount: float = 1) -> None:
        self.bytes += int(amount)

    def show(self, **fields: str) -> None:
        pass


def _shares(examples: Examples) -> Any:
    """A number from 0 to 1 for each example, by the hash of its text."""
    heads = np.frombuffer(examples.digests.tobytes(), np.uint64)[::2] if len(examples) else np.empty(0, np.uint64)
    return heads / 2.0**64
