"""How the slices of a checkpoint lie in `rank_N/` folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spark13b.ckpt.tensors import Checkpoint

MANIFEST = "spark13b-slices.json"


def open_slices(folder: Path, open_file: Callable[[Path], Checkpoint]) -> Checkpoint:
    """The slices in `folder` as one checkpoint of whole tensors."""
    raise NotImplementedError


def rank_folders(folder: Path) -> list[Path]:
    """`rank_0`, `rank_1`, ... in `folder`, in order of their numbers."""
    ranks = [path for path in folder.glob("rank_*") if path.is_dir() and path.name.removeprefix("rank_").isdigit()]
    return sorted(ranks, key=lambda path: int(path.name.removeprefix("rank_")))
