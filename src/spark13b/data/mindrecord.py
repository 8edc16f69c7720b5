"""Reading training rows from MindRecord in any order, through MindSpore's MindDataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spark13b.data.manifest import Manifest, first_file, read_manifest
from spark13b.data.mindrecord_file import read_header
from spark13b.data.mindspore_errors import reason_of
from spark13b.errors import InputError, JobError

__all__ = ["Manifest", "RowInfo", "open_rows", "read_manifest", "row_info"]

IDS, MASK, DOCUMENTS = "input_ids", "loss_mask", "document_ids"
_INTEGERS = ("int32", "int64")  # the original wrote int64

Row = npt.NDArray[Any]
Order = Sequence[int] | npt.NDArray[np.int64]
Batch = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


class RowInfo(NamedTuple):
    """What a MindRecord file holds: `row_length` is seq_length + 1."""

    rows: int
    row_length: int
    columns: tuple[str, ...]


def row_info(path: str | Path) -> RowInfo:
    """Count the rows of a file and measure them, without reading all of it.

    Reads what `spark13b preprocess` and the original write: `input_ids`, with or without `loss_mask`, int32 or int64.
    Raises InputError when it is anything else, is cut off or renamed, or lacks its index.
    """
    path = first_file(Path(path)).resolve()  # the file's own name counts, not a link's
    columns = read_header(path).columns
    if IDS not in columns or not columns.keys() <= {IDS, MASK, DOCUMENTS}:
        raise InputError(
            f"the columns must be {IDS}, with or without {MASK} and {DOCUMENTS}; "
            f"they are {', '.join(columns) or 'none'}",
            where=path,
            fix="make the file with 'spark13b preprocess'",
        )
    for name, kind in columns.items():
        if kind not in _INTEGERS:
            raise InputError(
                f"column {name} must be int32 or int64, it is {kind}",
                where=path,
                fix="make the file with 'spark13b preprocess'",
            )
    rows = _count(path)
    if not rows:
        raise InputError("the file holds no rows", where=path, fix="make it again with 'spark13b preprocess'")
    first, last = (row for end in (0, rows - 1) for row in _rows(path, [end], rows))
    row_length = len(first[IDS])
    _check_length(path, rows - 1, last, row_length)
    return RowInfo(rows, row_length, tuple(sorted(columns)))


def open_rows(path: str | Path, batch_size: int, *, order: Order | None = None) -> Iterator[Batch]:
    """Yield `(input_ids (B, T+1) int32, loss_mask (B, T+1) float32)` of the rows `order` names, in exactly that order.

    `order` None is the order of the file. A row may be named more than once, so several epochs can be one order. The
    last batch is smaller when `batch_size` does not divide the number of rows. A file without masks has ones. Closing
    the iterator frees its threads. Raises InputError as `row_info` does, at once, and for rows of different lengths;
    ValueError for a row that is not there; JobError when the file cannot be read to its end.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    path = first_file(Path(path)).resolve()
    info = row_info(path)
    chosen = np.arange(info.rows) if order is None else np.asarray(order, np.int64)
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < info.rows:  # MindSpore would wrap around in silence
        raise ValueError(f"the order names rows {chosen.min()} to {chosen.max()}; the file has 0 to {info.rows - 1}")
    return _batches(path, chosen.tolist(), batch_size, info)


def _batches(path: Path, order: list[int], batch_size: int, info: RowInfo) -> Iterator[Batch]:
    ids: list[Row] = []
    masks: list[Row] = []
    # batched here and not by MindSpore, which is as fast for rows of 32 Ki, and cannot name a row of another length
    for number, row in zip(order, _rows(path, order, info.rows), strict=True):
        _check_length(path, number, row, info.row_length)
        ids.append(row[IDS])
        masks.append(row[MASK] if MASK in row else np.ones(info.row_length, np.int32))
        if len(ids) == batch_size:
            yield np.stack(ids).astype(np.int32, copy=False), np.stack(masks).astype(np.float32)
            ids, masks = [], []
    if ids:
        yield np.stack(ids).astype(np.int32, copy=False), np.stack(masks).astype(np.float32)


def _rows(path: Path, order: list[int], rows: int) -> Iterator[dict[str, Row]]:
    """The rows of a file of `rows` rows in exactly this order."""
    from mindspore.dataset import SubsetSampler

    for start in range(0, len(order), rows):  # a SubsetSampler takes no more indices than there are rows
        iterator = None
        try:
            dataset = _dataset(path, SubsetSampler(order[start : start + rows]))
            iterator = dataset.create_dict_iterator(num_epochs=1, output_numpy=True)
            yield from iterator
        except (RuntimeError, ValueError) as error:  # as MindSpore tells of a file that has changed or gone meanwhile
            raise JobError(
                f"a row cannot be read: {reason_of(error)}",
                where=path,
                fix="copy the file again, or make it again with 'spark13b preprocess'",
            ) from error
        finally:
            if iterator is not None:
                iterator.stop()


def _check_length(path: Path, number: int, row: dict[str, Row], row_length: int) -> None:
    if any(len(column) != row_length for column in row.values()):
        lengths = " and ".join(f"{len(column):,} ({name})" for name, column in row.items())
        raise InputError(
            f"row {number} has length {lengths}, the first row {row_length:,}",
            where=path,
            fix="make the file again with 'spark13b preprocess'; the original writes long examples ragged",
        )


def _count(path: Path) -> int:
    try:
        return int(_dataset(path, None).get_dataset_size())
    except RuntimeError as error:
        raise InputError(
            f"MindSpore cannot read this file: {reason_of(error)}",
            where=path,
            fix="copy the file and its .db again, or make them again with 'spark13b preprocess'",
        ) from None


def _dataset(path: Path, sampler: Any) -> Any:
    from mindspore.dataset import MindDataset

    workers = min(2, os.cpu_count() or 1)  # more than there are cores is refused; two are as fast as any number
    if sampler is None:
        return MindDataset(str(path), shuffle=False, num_parallel_workers=workers)
    return MindDataset(str(path), sampler=sampler, num_parallel_workers=workers)
