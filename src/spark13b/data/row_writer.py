"""Writing training rows as MindRecord: the file, its index and its manifest appear together or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spark13b.data.manifest import Manifest, manifest_path
from spark13b.data.mindrecord_file import check_name, index_path
from spark13b.data.mindspore_errors import reason_of
from spark13b.data.packing import Rows
from spark13b.errors import InputError, JobError
from spark13b.files import check_writable, replacing

COLUMNS = ("input_ids", "loss_mask")
_SCHEMA = {name: {"type": "int32", "shape": [-1]} for name in COLUMNS}


class RowWriter:
    """Takes blocks of rows, then the manifest; get one from `row_writer`."""

    def __init__(self, draft: Path) -> None:
        from mindspore.mindrecord import FileWriter

        self._draft = draft
        self._writer: Any = FileWriter(str(draft), shard_num=1)
        self._writer.add_schema(_SCHEMA)

    def write(self, rows: Rows) -> None:
        """Append a block of rows. Raises JobError when MindRecord cannot take them."""
        block = [
            {"input_ids": ids, "loss_mask": mask} for ids, mask in zip(rows.input_ids, rows.loss_mask, strict=True)
        ]
        with _job_errors(self._draft):
            self._writer.write_raw_data(block)

    def finish(self, manifest: Manifest) -> None:
        """Close the file, write its index and the manifest."""
        with _job_errors(self._draft):
            self._writer.commit()
        sidecar = manifest_path(self._draft)
        sidecar.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for path in (self._draft, index_path(self._draft)):
            path.chmod(sidecar.stat().st_mode)  # MindRecord's own files are for their owner alone


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
        if path.is_dir():
            raise InputError("the output is a folder", where=path, fix="name a file, e.g. rows.mindrecord")
        check_writable(path, force=force)


@contextmanager
def row_writer(output: Path, *, force: bool = False) -> Iterator[RowWriter]:
    """Yield a writer; once `finish` was called and the block ends, `output`, its index and its manifest are there.

    MindRecord files hold their own name, so they are written under it in a folder beside `output`, then moved: old
    files go first and the main file comes last, so that whoever finds it finds all of it. Raises InputError when
    `output` exists and not `force`, JobError when the disk is full.
    """
    with replacing(output, force=force) as draft:
        yield RowWriter(draft)
        _publish(draft, output)  # the main file follows when `replacing` ends


def _publish(draft: Path, output: Path) -> None:
    for path in _files(draft):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    pairs = list(zip(_files(draft), _files(output), strict=True))
    output.unlink(missing_ok=True)
    try:
        for made, target in pairs[1:]:
            made.replace(target)
    except BaseException:
        for _, target in pairs[1:]:
            target.unlink(missing_ok=True)
        raise


def _files(output: Path) -> tuple[Path, Path, Path]:
    return output, index_path(output), manifest_path(output)


@contextmanager
def _job_errors(draft: Path) -> Iterator[None]:
    """MindRecord's errors as one line; it does not hand on what the system said, mostly that the disk is full."""
    try:
        yield
    except RuntimeError as error:
        raise JobError(
            f"MindRecord cannot write the rows: {reason_of(error)}",
            where=draft.parent.parent,
            fix=f"free some space: {shutil.disk_usage(draft.parent).free >> 20:,} MiB are left on this disk",
        ) from error
