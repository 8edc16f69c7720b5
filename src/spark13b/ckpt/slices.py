"""Cut a checkpoint into `rank_N/` slices, and see slices as one checkpoint again; one tensor at a time both ways."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from spark13b.ckpt.dtypes import Array
from spark13b.ckpt.layout import MANIFEST, RANK_FILE, Cut, Layout, cut_of, manifest_text, read_manifest
from spark13b.ckpt.metering import byte_meter
from spark13b.ckpt.mindspore_writer import CkptWriter
from spark13b.ckpt.reading_ahead import pieces_ahead
from spark13b.ckpt.streams import Workspace, copies, side_by_side
from spark13b.ckpt.tensors import Checkpoint, Derived, Recipe
from spark13b.ckpt.writing import Written, check_room, full_disk, room_needed
from spark13b.errors import InputError
from spark13b.files import replacing
from spark13b.progress import SILENT, Progress


def write_slices(
    path: str | Path, source: Checkpoint, layout: Layout, *, force: bool = False, progress: Progress = SILENT
) -> Written:
    """Cut `source` into `path/rank_N/model.ckpt` and a manifest.

    Ranks with the same content share one file on the disk. Each tensor is read once and held alone. `source` may be
    slices itself: that is a re-cut. Raises InputError (a tensor cannot be divided, `path` exists and not `force`) and
    JobError (the disk is full).
    """
    path = Path(path)
    cuts = {name: cut_of(info, layout) for name, info in source.infos.items()}
    parts = {name: cut.part_info(layout) for name, cut in cuts.items()}
    needed = check_room(path, room_needed(parts.values()) * layout.distinct_ranks)
    with (
        replacing(path, force=force) as draft,
        full_disk(path, needed),
        byte_meter(progress, f"writing {path.name}", source.nbytes) as advance,
    ):
        files = [draft / RANK_FILE.format(rank) for rank in range(layout.devices)]
        for file in files:
            file.parent.mkdir(parents=True)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(CkptWriter(file, source.metadata)) for file in files[: layout.distinct_ranks]
            ]
            workspace = Workspace()
            for info, pieces in pieces_ahead(source):
                array = workspace.fill(source, info.name, pieces)
                for rank, writer in enumerate(writers):
                    writer.add(parts[info.name], copies(cuts[info.name].part(array, layout, rank)))
                advance(info.nbytes)
            for writer in writers:
                writer.finish()
        for rank in range(layout.distinct_ranks, layout.devices):
            _same_file(files[rank % layout.model_parallel], files[rank])
        (draft / MANIFEST).write_text(manifest_text(layout, cuts.values()), encoding="utf-8")
    written = tuple(path / file.relative_to(draft) for file in files)
    return Written((*written, path / MANIFEST), len(cuts), source.nbytes)


def open_slices(folder: Path, open_file: Callable[[Path], Checkpoint]) -> Checkpoint:
    """The slices in `folder` as one checkpoint of whole tensors. Raises InputError: one is missing or does not fit."""
    layout, cuts = read_manifest(folder)
    ranks: list[Checkpoint] = []
    for rank in range(layout.distinct_ranks):
        file = folder / RANK_FILE.format(rank)
        if not file.is_file():
            what = f"the slice of rank {rank} of {layout.devices} is missing"
            raise InputError(what, where=file, fix="copy the whole folder")
        ranks.append(open_file(file))
        _check_fits(ranks[-1], layout, cuts)
    recipes = []
    for name, cut in cuts.items():
        checked = all(rank.has_checksum(name) for rank in ranks)
        pieces, read = partial(_whole, cut, layout, ranks), partial(_read_whole, cut, layout, ranks)
        recipes.append(Recipe(cut.info, read, pieces, checked))
    return Derived(folder, "slices", recipes, sources=ranks, metadata=ranks[0].metadata)


def _whole(cut: Cut, layout: Layout, ranks: Sequence[Checkpoint]) -> Iterator[memoryview]:
    """The bytes of one whole tensor, from the ranks that hold parts of it."""
    name, part = cut.info.name, cut.part_info(layout)
    numbers = range(layout.model_parallel if cut.axis is not None else 1)
    groups = range(layout.data_parallel if cut.sharded else 1)
    parts = [[ranks[group * layout.model_parallel + number] for group in groups] for number in numbers]
    if cut.axis == 1:
        row_bytes = part.shape[1] * part.dtype.itemsize
        yield from side_by_side([_one_after_the_other(name, column) for column in parts], row_bytes)
    else:
        for rows in parts:
            yield from _one_after_the_other(name, rows)


def _one_after_the_other(name: str, ranks: Sequence[Checkpoint]) -> Iterator[memoryview]:
    for rank in ranks:
        yield from rank.pieces(name)


def _read_whole(cut: Cut, layout: Layout, ranks: Sequence[Checkpoint]) -> Array:
    return np.frombuffer(bytearray().join(_whole(cut, layout, ranks)), cut.info.dtype).reshape(cut.info.shape)


def _check_fits(rank: Checkpoint, layout: Layout, cuts: dict[str, Cut]) -> None:
    for name, cut in cuts.items():
        expected, found = cut.part_info(layout), rank.infos.get(name)
        if found is None:
            raise InputError(f"tensor '{name}' is missing in this slice", where=rank.path, fix="copy the whole folder")
        if found != expected:
            what = (
                f"tensor '{name}' is {found.dtype.name} {list(found.shape)} in this slice, "
                f"the manifest says {expected.dtype.name} {list(expected.shape)}"
            )
            raise InputError(what, where=rank.path, fix="the slices and the manifest must come from one split")


def _same_file(original: Path, copy: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(original, copy)
    except OSError:
        shutil.copyfile(original, copy)
