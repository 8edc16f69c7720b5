"""Writing one checkpoint from all processes of a run: each its own part, and the folder appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spark13b.ckpt import TensorInfo, write_checkpoint
from spark13b.ckpt.dtypes import canonical
from spark13b.ckpt.layout import MANIFEST, RANK_FILE, Layout, cut_of, manifest_text
from spark13b.files import replacing
from spark13b.model.mesh import Mesh


@contextmanager
def written_together(folder: Path, mesh: Mesh, wait: Callable[[], None]) -> Iterator[Path]:
    """Yield where every process writes its part of `folder`, which the first one puts in place when all are done."""
    workspace = folder.parent / f".{folder.name}.together.part"
    draft = workspace / folder.name
    if mesh.world.index:
        wait()  # for the draft
        yield draft
        wait()  # for the parts
        wait()  # for the folder
        return
    with replacing(folder, force=True, workspace=workspace) as draft:
        draft.mkdir()
        wait()
        yield draft
        wait()
    wait()


def write_part(
    folder: Path, parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], mesh: Mesh, layout: Layout
) -> None:
    """Write this process's part of parameters whose whole shapes are `shapes`, as `ckpt split` would.

    What another process has as well is written by one. The first one adds the manifest.
    """
    if mesh.world.index < layout.distinct_ranks:
        file = folder / RANK_FILE.format(mesh.world.index)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(file, ((name, one.asnumpy()) for name, one in parameters.items()))
    if mesh.world.index == 0 and layout.distinct_ranks > 1:
        infos = [TensorInfo(name, shapes[name], canonical(one[:1].asnumpy()).dtype) for name, one in parameters.items()]
        text = manifest_text(layout, [cut_of(info, layout) for info in infos])
        (folder / MANIFEST).write_text(text, encoding="utf-8")
