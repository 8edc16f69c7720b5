"""Join the original's distributed checkpoints, which come with MindSpore's strategy files, by MindSpore's functions.

`mindspore.transform_checkpoint_by_rank` would load all slices at once. It is given a few tensors at a time instead, in
small files of their own, so the memory it needs does not grow with the model.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from spark13b.ckpt.conversion import Conversion, member_of, refuse_same
from spark13b.ckpt.dtypes import Array
from spark13b.ckpt.layout import rank_folders
from spark13b.ckpt.opening import checkpoint_files, open_file
from spark13b.ckpt.tensors import Checkpoint, TensorInfo
from spark13b.ckpt.writing import Format, check_room, write_checkpoint, write_file
from spark13b.errors import InputError
from spark13b.files import check_writable
from spark13b.progress import SILENT, Progress

_BATCH = 64 << 20  # bytes of slices that are given to MindSpore at once; it holds them about six times


@dataclass(frozen=True)
class Joined:
    """What will come out: `nbytes` of whole tensors in all, and the tensors themselves, once."""

    nbytes: int
    items: Iterator[tuple[str, Array]]


@contextmanager
def joined_by_strategy(folder: Path, strategies: Sequence[Path], workspace: Path) -> Iterator[Joined]:
    """Every tensor of `folder/rank_N/*.ckpt`, cut as the strategy files tell, whole.

    Several files are the stages of a pipeline. `workspace` is an existing folder for small temporary files. What no
    strategy names (`global_step`) is the same on every rank and taken from the first. Raises InputError.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=workspace, prefix=".joining.")))
        strategy = _one_strategy(strategies, scratch)
        slices = _slice_counts(strategy)
        ranks = _open_ranks(folder, strategy)
        for rank in ranks.values():
            stack.enter_context(rank)
        infos = {name: info for rank in reversed(ranks.values()) for name, info in rank.infos.items()}
        nbytes = sum(info.nbytes * slices.get(name, 1) for name, info in infos.items())
        yield Joined(nbytes, _joined(ranks, infos, slices, strategy, scratch))


def _joined(
    ranks: Mapping[int, Checkpoint],
    infos: Mapping[str, TensorInfo],
    slices: Mapping[str, int],
    strategy: Path,
    scratch: Path,
) -> Iterator[tuple[str, Array]]:
    for batch in _batches(ranks, [name for name in infos if name in slices]):
        yield from _join(batch, ranks, strategy, scratch)
    for name in infos:
        if name not in slices:
            yield name, next(rank.read(name) for rank in ranks.values() if name in rank)


def merge_by_strategy(
    source: Path,
    strategies: Sequence[Path],
    target: Path,
    format: Format,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> Conversion:
    """Join the slices in `source` and write them whole at `target`, a file or a folder as in `convert`."""
    if not rank_folders(source):
        raise InputError("there are no slices here", where=source, fix="name the folder of rank_0/, rank_1/, ...")
    refuse_same(source, target)
    check_writable(target, force=force)
    start = time.monotonic()
    with joined_by_strategy(source, strategies, target.parent) as joined:
        check_room(target, joined.nbytes)
        written = write_checkpoint(
            target, joined.items, format, force=force, member=member_of(target, format), progress=progress
        )
    return Conversion(source, target, format, written, time.monotonic() - start)


def _one_strategy(strategies: Sequence[Path], scratch: Path) -> Path:
    """One strategy file: the one given, or the stages of a pipeline merged."""
    import mindspore

    for path in strategies:
        if not path.is_file():
            raise InputError("there is no such strategy file", where=path, fix="check the path")
    suffixes = {path.suffix for path in strategies}
    if not suffixes <= {".ckpt", ".json"} or len(suffixes) != 1:
        fix = "give files as MindSpore wrote them, all .ckpt or all .json"
        raise InputError("strategy files are .ckpt or .json, not both", where=strategies[0], fix=fix)
    if len(strategies) == 1:
        return strategies[0]
    stages = scratch / "stages"
    stages.mkdir()
    for number, path in enumerate(strategies):
        shutil.copyfile(path, stages / f"{number}{path.suffix}")
    merged = scratch / f"merged{strategies[0].suffix}"
    with _as_input_error(strategies[0]):
        mindspore.merge_pipeline_strategys(str(stages), str(merged))
    return merged


def _slice_counts(strategy: Path) -> dict[str, int]:
    """Name -> into how many different slices the strategy cuts it."""
    import mindspore

    with _as_input_error(strategy):
        layouts = mindspore.build_searched_strategy(str(strategy))
    if not layouts:
        raise InputError("the strategy file names no parameters", where=strategy, fix="name the training run's file")
    return {_without_stage(name): _slices(layout) for name, layout in layouts.items()}


def _slices(layout: Any) -> int:
    """A dimension with number m in the tensor map is cut along axis -1-m of the devices; -1 leaves it whole."""
    devices: list[int] = list(layout.dev_matrix[0].dim)
    axes = [axis for tensor_map in layout.tensor_map for axis in tensor_map.dim if axis >= 0]
    slices: int = prod(devices[-1 - axis] for axis in axes)
    return slices * max(1, int(layout.opt_weight_shard_size))


def _without_stage(name: str) -> str:
    stage, dash, rest = name.partition("-")  # a merged pipeline strategy says '1-transformer...'
    return rest if dash and stage.isdigit() else name


def _open_ranks(folder: Path, strategy: Path) -> dict[int, Checkpoint]:
    """Rank -> its slice, for the ranks that the strategy needs."""
    import mindspore

    with _as_input_error(strategy):
        needed = sorted(map(int, mindspore.rank_list_for_transform(0, str(strategy), None)))
    folders = {int(path.name.removeprefix("rank_")): path for path in rank_folders(folder)}
    missing = [rank for rank in needed if rank not in folders]
    if missing:
        names = ", ".join(f"rank_{rank}" for rank in missing[:8])
        raise InputError(f"the strategy needs slices that are missing: {names}", where=folder, fix="copy them too")
    return {rank: open_file(_one_file(folders[rank])) for rank in needed}


def _one_file(folder: Path) -> Path:
    files = checkpoint_files(folder)
    if len(files) != 1:
        what = f"expected one checkpoint file, found {len(files)}"
        raise InputError(what, where=folder, fix="keep the file of one step in each rank's folder")
    return files[0]


def _batches(ranks: Mapping[int, Checkpoint], names: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    filled = 0
    for name in names:
        nbytes = sum(rank.infos[name].nbytes for rank in ranks.values() if name in rank)
        if batch and filled + nbytes > _BATCH:
            yield batch
            batch, filled = [], 0
        batch.append(name)
        filled += nbytes
    if batch:
        yield batch


def _join(
    names: Sequence[str], ranks: Mapping[int, Checkpoint], strategy: Path, scratch: Path
) -> Iterator[tuple[str, Array]]:
    import mindspore

    files: dict[int, str] = {}
    for rank, checkpoint in ranks.items():
        present = [name for name in names if name in checkpoint]
        if present:
            file = scratch / f"rank_{rank}.ckpt"
            tensors = ((checkpoint.infos[name], checkpoint.pieces(name)) for name in present)
            write_file(file, tensors, "ckpt", None, {})
            files[rank] = str(file)
    whole = scratch / "whole.ckpt"
    with _as_input_error(strategy):
        mindspore.transform_checkpoint_by_rank(0, files, str(whole), str(strategy), None)
    with open_file(whole) as joined:
        yield from joined.items()
    whole.unlink()


@contextmanager
def _as_input_error(strategy: Path) -> Iterator[None]:
    """MindSpore's complaints about strategies and slices as InputError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        what = f"MindSpore cannot join the slices: {str(error).strip() or type(error).__name__}"
        fix = "the strategy files must be those of the run that wrote the slices"
        raise InputError(what, where=strategy, fix=fix) from error
