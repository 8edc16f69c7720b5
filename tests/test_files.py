"""Outputs: whole or not at all, and in the place of nothing but what may be replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spark13b.errors import InputError
from spark13b.files import replacing, write_text


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "kept").touch()
    with pytest.raises(InputError, match="the output is a folder"):
        write_text(folder, "text", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] and (folder / "kept").exists()


def test_a_file_never_replaces_a_device_or_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="the output is a device or a pipe"):
        write_text(tmp_path / "pipe", "text", force=True)
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("inside", [".", "work/deeper"])
def test_the_folder_that_the_user_is_in_is_never_replaced(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    (target / inside).mkdir(parents=True)
    monkeypatch.chdir(target / inside)
    with pytest.raises(InputError, match="would remove this folder"), replacing(target, force=True) as draft:
        draft.mkdir()
    assert (target / inside).exists()


def test_a_folder_replaces_a_folder_with_force(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    with replacing(target, force=True) as draft:
        draft.mkdir()
        (draft / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_removed_working_folder_keeps_nothing_from_being_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, target = tmp_path / "gone", tmp_path / "target"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    target.mkdir()
    with replacing(target, force=True) as draft:
        draft.mkdir()
    assert list(tmp_path.iterdir()) == [target]
    monkeypatch.chdir(tmp_path)
