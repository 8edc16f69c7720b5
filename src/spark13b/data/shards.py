"""Training rows as MindRecord files of a bounded size, and how they become an output: all of it at once.

While a job runs its files are in FILE.partial/. One shard becomes FILE; several become FILE0, FILE1, ..., a set that
every reader of MindRecord knows as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from spark13b.data.manifest import ERRORS_SUFFIX, REPORT_SUFFIX, Manifest, files_of, manifest_path
from spark13b.data.mindrecord_file import check_name, index_path, rename
from spark13b.data.mindrecord_writer import MindRecordWriter
from spark13b.data.packing import Rows
from spark13b.errors import InputError
from spark13b.files import check_writable, refuse_folder, sync

_BYTES = 5  # of a position of a row on the disk, mask and all; measured


class Shards:
    """Rows on their way into the MindRecord files of `folder`, each of about `shard_bytes`.

    `rows` lists the rows of the files that are finished; those of an earlier run can be given.
    """

    def __init__(self, folder: Path, columns: tuple[str, ...], shard_bytes: int, rows: Iterable[int] = ()) -> None:
        self._folder, self._limit = folder, shard_bytes
        self._columns = columns
        self.rows = list(rows)
        self._writer: MindRecordWriter | None = None
        self._written = 0  # rows of the file at work
        self._size = 0  # bytes, about
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():  # what a killed run was writing
            if path not in {one for shard in self.files for one in (shard, index_path(shard))}:
                path.unlink()

    @property
    def files(self) -> list[Path]:
        """The finished files."""
        return [self._file(number) for number in range(len(self.rows))]

    @property
    def full(self) -> bool:
        """Whether the file at work is as large as it should be."""
        return self._size >= self._limit

    def write(self, rows: Rows) -> None:
        """Append a block of rows."""
        if self._writer is None:
            self._writer = MindRecordWriter(self._file(len(self.rows)), self._columns)
        columns = {"input_ids": rows.input_ids, "loss_mask": rows.loss_mask}
        if rows.document_ids is not None:
            columns["document_ids"] = rows.document_ids
        self._writer.write(columns)
        self._written += len(rows)
        self._size += rows.input_ids.size * _BYTES

    def close(self) -> None:
        """Finish the file at work, if there is one, down to the disk."""
        if self._writer is None:
            return
        self._writer.commit()
        path = self._file(len(self.rows))
        for one in (path, index_path(path)):
            sync(one)
        self.rows.append(self._written)
        self._writer, self._written, self._size = None, 0, 0

    def abandon(self) -> None:
        """Let go of the file at work."""
        if self._writer is not None:
            self._writer.close()

    def _file(self, number: int) -> Path:
        return self._folder / f"shard-{number:05}"


def check_output(output: Path, inputs: Iterable[Path], *, force: bool = False) -> None:
    """Refuse an output that cannot be written, before any work.

    Raises InputError when MindRecord forbids its name, when one of its files exists (and not `force`), is an input or
    a folder, or when its folder cannot be written to.
    """
    check_name(output)
    sources = {path.resolve() for path in inputs}
    for path in _files(output):
        if path.resolve() in sources:
            raise InputError("the output is one of the inputs", where=path, fix="choose another --output")
        refuse_folder(path)
        check_writable(path, force=force)


def report_path(rows_file: Path) -> Path:
    """Where the report of a MindRecord file is."""
    return rows_file.with_name(rows_file.name + REPORT_SUFFIX)


def errors_path(rows_file: Path) -> Path:
    """Where the bad records of a MindRecord file are listed."""
    return rows_file.with_name(rows_file.name + ERRORS_SUFFIX)


def prepare(shards: Shards, output: Path, manifest: Manifest, report: str, folder: Path) -> None:
    """Lay out in `folder` what `publish` will move to `output`: nothing can fail after that but the disk."""
    folder.mkdir(exist_ok=True)
    sidecar = manifest_path(folder / output.name)
    sidecar.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    report_path(folder / output.name).write_text(report, encoding="utf-8")
    mode = sidecar.stat().st_mode  # MindRecord's own files are for their owner alone
    targets = files_of(folder / output.name, len(shards.rows))
    for made, target in zip(shards.files, targets, strict=True):
        if made.exists():  # else an earlier run has moved it
            rename(made, target.name, [one.name for one in targets])
        for path, place in ((made, target), (index_path(made), index_path(target))):
            if path.exists():
                path.chmod(mode)
                sync(path)
                path.rename(place)
    for path in (sidecar, report_path(folder / output.name)):
        sync(path)


def remove_output(output: Path) -> None:
    """Remove what is there of an output."""
    for path in _files(output):
        path.unlink(missing_ok=True)


def publish(folder: Path, output: Path) -> None:
    """Move what `prepare` laid out: rows last, so that whoever finds them finds all. It may be called again."""
    rank = {manifest_path(output).name: 1, report_path(output).name: 1}  # behind the indexes, before the rows
    names = sorted(path.name for path in folder.iterdir())
    for name in sorted(names, key=lambda name: 0 if name.endswith(".db") else rank.get(name, 2)):
        (folder / name).replace(output.with_name(name))
    sync(output.parent)


def _files(output: Path) -> list[Path]:
    """Every file that an output has or may have had, of one shard or of several."""
    pattern = re.compile(re.escape(output.name) + r"\d+(\.db)?")
    folder = output.parent
    several = [path for path in folder.iterdir() if pattern.fullmatch(path.name)] if folder.is_dir() else []
    return [output, index_path(output), *several, manifest_path(output), report_path(output), errors_path(output)]
