"""Outputs appear whole or not at all: write beside, fsync, rename. Nothing is overwritten unless asked."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from spark13b.errors import InputError, JobError


class DiskFull(JobError):
    """The disk is full; who knows how the job goes on from there tells it in its own `fix`."""


def check_writable(target: Path, *, force: bool = False) -> None:
    """Refuse early: `target` exists (and not `force`, or as a device), or its folder cannot be made or written to."""
    if target.exists() and not (target.is_file() or target.is_dir()):  # root would replace /dev/null by a file
        raise InputError("the output is a device or a pipe", where=target, fix="name a file")
    if (target.exists() or target.is_symlink()) and not force:
        raise InputError("the output already exists", where=target, fix="name another place for it, or add --force")
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError("the output's folder is a file", where=folder, fix="name another place for it")
    try:  # os.access is not enough: root passes it on a read-only file system
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write here: {error.strerror}", where=target.parent, fix="choose an --output in a writable folder"
        ) from error


def check_writable_file(target: Path, *, force: bool = False, inputs: Iterable[Path | None] = ()) -> None:
    """`check_writable` for an output that is one file, and none of `inputs`. A folder is never replaced by it."""
    refuse_folder(target)
    if target.exists() and any(path is not None and path.exists() and path.samefile(target) for path in inputs):
        raise InputError("the output is one of the inputs", where=target, fix="choose another --output")
    check_writable(target, force=force)


def refuse_folder(target: Path) -> None:
    """Raise InputError when a folder stands where a file is to be written."""
    if target.is_dir():
        raise InputError("the output is a folder", where=target, fix="name a file, in this folder or in another one")


def _check_replaceable(folder: Path) -> None:
    """Keep `--force` from removing the folder that the user is in, or the home, with all that is there."""
    for find in (Path.cwd, Path.home):
        try:
            kept = find().resolve()
        except (OSError, RuntimeError):  # a folder that was removed, a user without a home
            continue
        if kept.is_relative_to(folder.resolve()):
            raise InputError(
                f"--force would remove this folder, and {kept} in it", where=folder, fix="name a new folder"
            )


@contextmanager
def replacing(target: Path, *, force: bool = False, workspace: Path | None = None) -> Iterator[Path]:
    """Yield a path beside `target` to write a file or make a folder at; on success it becomes `target`, else it goes.

    It lies in a new hidden folder beside `target`, or in `workspace`, whose name others know. Raises
    InputError when `target` exists and not `force`, when it is a folder where a file is to stand, or the folder that
    the user is in; JobError when the disk is full.
    """
    check_writable(target, force=force)
    if target.is_dir():
        _check_replaceable(target)
    if workspace is None:
        workspace = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    else:
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir()
    draft = workspace / target.name
    try:
        yield draft
        _sync_tree(draft)
        if not draft.is_dir():
            refuse_folder(target)
        if target.exists() and (target.is_dir() or draft.is_dir()):
            target.rename(workspace / (target.name + ".old"))  # a folder cannot be renamed over
        draft.rename(target)
        sync(target.parent)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def write_text(target: Path, text: str, *, force: bool = False) -> None:
    """Write a small UTF-8 file whole or not at all."""
    with replacing(target, force=force) as draft:
        draft.write_text(text, encoding="utf-8")


def disk_error(error: OSError, target: Path) -> Exception:
    """The error to show for an OSError met while writing `target`; other errors come back as they are."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("the disk is full", where=target.parent, fix="free some space, then run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(
            f"cannot write here: {error.strerror}", where=target, fix="choose an --output in a writable folder"
        )
    return error


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _sync_tree(child)
    sync(path)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
