"""From one checkpoint to another: where the result goes, whether it may, and writing it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from spark13b.ckpt.tensors import Checkpoint
from spark13b.ckpt.writing import FORMATS, Format, Written, format_of, write_checkpoint
from spark13b.errors import InputError
from spark13b.progress import SILENT, Progress

# The file inside a folder that is named as the target: where trainers, hubs and torch look for it.
_MEMBERS: dict[Format, str] = {
    "ckpt": "rank_0/model.ckpt",
    "safetensors": "model.safetensors",
    "torch": "pytorch_model.bin",
}


@dataclass(frozen=True)
class Conversion:
    """What came of a conversion, for the summary."""

    source: Path
    target: Path
    format: str
    written: Written
    seconds: float

    def summary(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "source": str(self.source),
            "target": str(self.target),
            "format": self.format,
            "files": [str(file) for file in self.written.files],
            "tensors": self.written.tensors,
            "bytes": self.written.nbytes,
            "seconds": round(self.seconds, 3),
        }


def convert(
    source: Checkpoint,
    target: Path,
    format: Format,
    *,
    origin: Path | None = None,
    shard_size: int | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Conversion:
    """Write `source` at `target`: a file when it is named like one (`.ckpt`, ...), else a folder.

    The folder holds `rank_0/model.ckpt`, `model.safetensors` or `pytorch_model.bin`, or the shards. Raises InputError
    and JobError as `write_checkpoint` does. `origin` is what the user named, where that is not the file itself: the
    target may not lie in it.
    """
    origin = origin or source.path
    refuse_same(origin, target)
    start = time.monotonic()
    written = write_checkpoint(
        target,
        source,
        format,
        force=force,
        metadata=source.metadata,
        shard_size=shard_size,
        member=None if shard_size is not None else member_of(target, format),
        progress=progress,
    )
    return Conversion(origin, target, format, written, time.monotonic() - start)


def member_of(target: Path, format: Format) -> str | None:
    """The file inside `target` when that is to be a folder, None when it is itself a file."""
    return None if format_of(target) else _MEMBERS[format]


def chosen_format(target: Path, wanted: str | None) -> Format:
    """The format to write: `wanted`, else what the target's suffix says. Raises InputError when neither tells."""
    if wanted is None:
        by_suffix = format_of(target)
        if by_suffix is None:
            raise InputError("which format?", where=target, fix=f"add --to {'|'.join(FORMATS)}")
        return by_suffix
    for format in FORMATS:
        if wanted == format:
            return format
    raise InputError(f"there is no format '{wanted}'", where="--to", fix=f"known are {', '.join(FORMATS)}")


def same_format(source: Checkpoint, target: Path) -> Format:
    """The format for a result of the same kind: what the target's suffix says, else the source's own."""
    own: Format = "ckpt" if source.format == "slices" else source.format
    return format_of(target) or own


def refuse_same(source: Path, target: Path) -> None:
    """Raise InputError when `target` is the source (by whatever name), or one of them lies inside the other."""
    if target.exists() and source.samefile(target):
        raise InputError("source and target are the same", where=target, fix="choose another target")
    if _within(target, source) or _within(source, target):
        raise InputError("one of source and target lies inside the other", where=target, fix="choose another target")


def _within(path: Path, folder: Path) -> bool:
    return folder.is_dir() and path.resolve().is_relative_to(folder.resolve())
