"""`write_checkpoint`: stream tensors into a file (or shards) that appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from spark13b.ckpt.dtypes import Array, canonical, pieces_of
from spark13b.ckpt.metering import amount, byte_meter, counted
from spark13b.ckpt.mindspore_writer import CkptWriter
from spark13b.ckpt.output_file import TensorWriter
from spark13b.ckpt.reading_ahead import pieces_ahead
from spark13b.ckpt.safetensors_file import SafetensorsWriter
from spark13b.ckpt.shards import INDEX_NAMES, SHARD_NAMES, batches, index_text
from spark13b.ckpt.tensors import Checkpoint, TensorInfo
from spark13b.ckpt.torch_writer import TorchWriter
from spark13b.errors import InputError, JobError
from spark13b.files import DiskFull, disk_error, replacing
from spark13b.progress import SILENT, Progress

Format = Literal["ckpt", "safetensors", "torch"]
FORMATS: tuple[Format, ...] = ("ckpt", "safetensors", "torch")
_BY_SUFFIX: dict[str, Format] = {
    ".ckpt": "ckpt",
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
}
_TENSOR_OVERHEAD = 512  # bytes of a tensor's name, shape, checksum and padding in a file, generously


@dataclass(frozen=True)
class Written:
    """What was written."""

    files: tuple[Path, ...]
    tensors: int
    nbytes: int  # of the tensors


def write_checkpoint(
    path: str | Path,
    items: Iterable[tuple[str, Array]] | Mapping[str, Array],
    format: Format = "ckpt",
    *,
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
    shard_size: int | None = None,
    member: str | None = None,
    progress: Progress = SILENT,
) -> Written:
    """Write `items` (name, array) one at a time; `path` appears whole or not at all.

    Give a `Checkpoint` where there is one: then the room on the disk is checked before anything is written, and it can
    be cut: with `shard_size` (bytes) `path` becomes a folder of shards with an index. With `member` `path` becomes a
    folder that holds the file under that name. `metadata` holds strings; MindSpore loads them beside the tensors.
    Raises InputError (`path` exists and not `force`, a number format the file cannot hold, a name given twice) and
    JobError (the disk is full).
    """
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"there is no format '{format}'", fix=f"known are {', '.join(FORMATS)}")
    if shard_size is not None and format == "ckpt":
        fix = "leave out the shard size, or write safetensors"
        raise InputError("MindSpore's .ckpt has no shards", where=path, fix=fix)
    plan = list(items.infos.values()) if isinstance(items, Checkpoint) else None
    if shard_size is not None and plan is None:
        raise ValueError("only a Checkpoint can be cut into shards: their number must be known beforehand")
    needed = check_room(path, room_needed(plan)) if plan is not None else None
    total = sum(info.nbytes for info in plan) if plan is not None else None
    with (
        replacing(path, force=force) as draft,
        full_disk(path, needed),
        byte_meter(progress, f"writing {path.name}", total) as advance,
    ):
        stream = _streams(items, advance)
        if shard_size is not None and plan is not None:
            shards = list(batches(plan, shard_size))
            return _write_shards(draft, path, stream, format, shards, metadata or {})
        file = draft / member if member else draft
        file.parent.mkdir(parents=True, exist_ok=True)
        infos = write_file(file, stream, format, plan, metadata or {})
    return Written((path / member if member else path,), len(infos), sum(info.nbytes for info in infos))


def format_of(path: str | Path) -> Format | None:
    """The format that a file's suffix asks for, None for any other suffix."""
    return _BY_SUFFIX.get(Path(path).suffix)


def write_file(
    draft: Path,
    items: Iterable[tuple[TensorInfo, Iterable[memoryview]]],
    format: Format,
    plan: Sequence[TensorInfo] | None,
    metadata: Mapping[str, str],
) -> list[TensorInfo]:
    """Stream tensors and the pieces of their bytes into the new file `draft`, whatever becomes of it."""
    infos: dict[str, TensorInfo] = {}
    with _writer(draft, format, plan, metadata) as writer:
        for info, pieces in items:
            if info.name in infos:
                raise InputError(f"tensor '{info.name}' is written twice", where=draft.name)
            left = iter(pieces)
            writer.add(info, left)
            if next(left, None) is not None:  # asked for in any case: a damaged source says so after its last piece
                raise AssertionError(f"'{info.name}' has more bytes than announced")
            infos[info.name] = info
        if not infos:
            raise InputError("there are no tensors to write", fix="see 'spark13b ckpt info' for what the source holds")
        if plan is not None and list(infos.values()) != list(plan):
            raise AssertionError("other tensors were written than were planned")
        writer.finish()
    return list(infos.values())


def _streams(
    items: Iterable[tuple[str, Array]] | Mapping[str, Array], advance: Callable[[int], None]
) -> Iterator[tuple[TensorInfo, Iterator[memoryview]]]:
    """Every tensor as its info and its bytes piece by piece, counted as they go."""
    if isinstance(items, Checkpoint):
        for info, pieces in pieces_ahead(items):
            yield info, counted(pieces, advance)
        return
    for name, array in items.items() if isinstance(items, Mapping) else items:
        known = canonical(array)
        yield TensorInfo(name, known.shape, known.dtype), counted(pieces_of(known), advance)


def _writer(
    draft: Path, format: Format, plan: Sequence[TensorInfo] | None, metadata: Mapping[str, str]
) -> TensorWriter:
    if format == "safetensors":
        return SafetensorsWriter(draft, plan, metadata)
    return TorchWriter(draft, plan, metadata) if format == "torch" else CkptWriter(draft, metadata)


def room_needed(plan: Iterable[TensorInfo]) -> int:
    """Bytes that a file of these tensors takes, a little more rather than less."""
    return sum(info.nbytes + len(info.name) + _TENSOR_OVERHEAD for info in plan)


def check_room(path: Path, needed: int) -> int:
    """Raise JobError when the disk of `path` has no room for `needed` bytes, else return them."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        remains = sorted(path.parent.glob(f".{path.name}.*.part"))  # what `files.replacing` leaves when it is killed
        hint = f"remove {remains[0]}, left by a run that was killed" if remains else "free some space"
        raise JobError(
            f"the disk has not enough room: {amount(needed)} needed, {amount(free)} free",
            where=folder,
            fix=f"{hint}, or choose an output on another disk",
        )
    return needed


@contextmanager
def full_disk(path: Path, needed: int | None) -> Iterator[None]:
    """Tell how much was needed when the disk fills up all the same."""
    try:
        yield
    except OSError as error:
        shown = disk_error(error, path)
        if isinstance(shown, DiskFull) and needed is not None:
            shown = DiskFull(f"the disk is full: {amount(needed)} needed", where=path.parent, fix=shown.fix)
        raise shown from error


def _write_shards(
    draft: Path,
    path: Path,
    items: Iterator[tuple[TensorInfo, Iterator[memoryview]]],
    format: Format,
    shards: list[list[TensorInfo]],
    metadata: Mapping[str, str],
) -> Written:
    draft.mkdir()
    files = {}
    for number, batch in enumerate(shards, 1):
        name = SHARD_NAMES[format].format(number, len(shards))
        files[name] = write_file(draft / name, islice(items, len(batch)), format, batch, metadata)
    (draft / INDEX_NAMES[format]).write_text(index_text(files), encoding="utf-8")
    infos = [info for batch in files.values() for info in batch]
    return Written(
        tuple(path / name for name in (*files, INDEX_NAMES[format])), len(infos), sum(info.nbytes for info in infos)
    )
