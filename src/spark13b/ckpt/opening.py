"""`open_checkpoint`: find out from the content what a file or folder is, and index it without reading its tensors."""

from __future__ import annotations

from pathlib import Path

from spark13b.ckpt.layout import MANIFEST, rank_folders
from spark13b.ckpt.mindspore_reader import looks_encrypted, looks_like_ckpt, open_ckpt
from spark13b.ckpt.quantized import with_own_weights
from spark13b.ckpt.safetensors_file import looks_like_safetensors, open_safetensors
from spark13b.ckpt.shards import open_shards
from spark13b.ckpt.tensors import Checkpoint
from spark13b.ckpt.torch_reader import LEGACY_HEAD, ZIP_HEAD, open_torch
from spark13b.errors import InputError
from spark13b.run_folder import weights_of

SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")
_KNOWN = "known are MindSpore .ckpt, safetensors, torch files, and folders of them"


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A read-only mapping name -> array over a file or folder; each array is read when it is looked up.

    A folder may hold one checkpoint file, shards with an index (`*.index.json`), `rank_0/` with complete weights, or
    the slices that `spark13b ckpt split` wrote, which appear joined; a training run's stands for its newest
    checkpoint. Quantised weights appear as what they stand for. Raises InputError, naming file, tensor and byte.
    """
    return with_own_weights(_open_stored(weights_of(Path(path))))


def _open_stored(path: Path) -> Checkpoint:
    """The tensors that are in the file or files."""
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise InputError("there is no such checkpoint", where=path, fix="check the path")
    if path.name.endswith(".index.json"):
        return open_shards(path, open_file)
    return open_file(path)


def open_file(path: Path) -> Checkpoint:
    """One checkpoint file of whatever format, with the tensors that are in it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(256)
    if not head:
        raise InputError("the file is empty", where=path, fix="copy or download it again")
    if head.startswith((ZIP_HEAD, LEGACY_HEAD)):
        return open_torch(path)
    if looks_like_safetensors(head, size):
        return open_safetensors(path)
    if looks_encrypted(head):
        fix = "load it with mindspore.load_checkpoint(dec_key=...) and save it without a key"
        raise InputError("the checkpoint is encrypted", where=path, fix=fix)
    if looks_like_ckpt(head):
        return open_ckpt(path)
    raise InputError(f"this is no checkpoint: {_what_it_is(head)}", where=path, fix=_cure(head))


def _open_folder(folder: Path) -> Checkpoint:
    if (folder / MANIFEST).is_file():
        from spark13b.ckpt.slices import open_slices  # which needs the writers; most checkpoints are whole

        return open_slices(folder, open_file)
    indexes = sorted(folder.glob("*.index.json"))
    if len(indexes) == 1:
        return open_shards(indexes[0], open_file)
    ranks = rank_folders(folder)
    if len(ranks) == 1:  # whatever lies beside it: a trainer's optimizer state does
        return _one_of(checkpoint_files(ranks[0]), ranks[0])
    if ranks:
        raise InputError(
            f"the folder holds slices of {len(ranks)} ranks and nothing says how they were cut",
            where=folder,
            fix="join them with 'spark13b ckpt merge --strategy', or name the one file that is complete",
        )
    return _one_of(checkpoint_files(folder), folder)


def checkpoint_files(folder: Path) -> list[Path]:
    """Files in `folder` that are named like checkpoints, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())


def _one_of(files: list[Path], folder: Path) -> Checkpoint:
    if not files:
        raise InputError(
            "the folder holds no checkpoint",
            where=folder,
            fix=f"expected one of {', '.join('*' + suffix for suffix in SUFFIXES)}, an *.index.json, or rank_0/",
        )
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:4]) + (", ..." if len(files) > 4 else "")
        raise InputError(f"the folder holds {len(files)} checkpoints: {names}", where=folder, fix="name one of them")
    return open_file(files[0])


def _what_it_is(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; the weights themselves were not downloaded"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "it is a bare pickle, which could run code and was not read"
    if head.startswith(b"\x89HDF"):
        return "it is an HDF5 file"
    if head.startswith(b"GGUF"):
        return "it is a GGUF file"
    return f"it begins with {head[:8].hex(' ')}"


def _cure(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "run 'git lfs pull' in the repository that it came from"
    return _KNOWN
