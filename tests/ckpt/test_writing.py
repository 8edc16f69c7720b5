"""What is written appears whole or not at all: existing targets, full disks, killed runs, sources that are targets."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.ckpt.conversion import convert, refuse_same
from spark13b.ckpt.layout import Layout
from spark13b.ckpt.slices import write_slices
from spark13b.errors import InputError, JobError

FORMATS = ("ckpt", "safetensors", "torch")


def test_an_existing_target_is_kept_unless_forced(tmp_path: Path, golden_weights: dict) -> None:
    target = tmp_path / "x.ckpt"
    target.write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        write_checkpoint(target, golden_weights)
    assert target.read_text() == "precious"
    write_checkpoint(target, golden_weights, force=True)
    with open_checkpoint(target) as checkpoint:
        assert len(checkpoint) == len(golden_weights)


def test_the_target_may_not_be_the_source_by_any_name(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "link.ckpt").symlink_to(weights)
    os.link(weights, tmp_path / "hard.ckpt")
    before = weights.read_bytes()
    for target in (weights, tmp_path / "link.ckpt", tmp_path / "hard.ckpt", tmp_path / "." / "weights.ckpt"):
        with open_checkpoint(weights) as source, pytest.raises(InputError, match="the same"):
            convert(source, target, "ckpt", force=True)
    with pytest.raises(InputError, match="inside the other"):
        refuse_same(weights, tmp_path)
    with pytest.raises(InputError, match="inside the other"):
        refuse_same(tmp_path, tmp_path / "new" / "y.ckpt")
    assert weights.read_bytes() == before


@pytest.mark.parametrize("format", FORMATS)
def test_an_error_half_way_leaves_nothing(format: str, tmp_path: Path) -> None:
    def items() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", np.ones(1000, np.float32)
        raise InputError("the source broke")

    with pytest.raises(InputError, match="the source broke"):
        write_checkpoint(tmp_path / "x", items(), format)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_breaks_in_the_reading_thread_is_reported(tmp_path: Path, weights: Path) -> None:
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    for format in FORMATS:
        with open_checkpoint(weights) as source, pytest.raises(InputError, match="does not match its checksum"):
            write_checkpoint(tmp_path / "out", source, format)
        assert not (tmp_path / "out").exists()
    with open_checkpoint(weights) as source, pytest.raises(InputError, match="does not match its checksum"):
        write_slices(tmp_path / "slices", source, Layout(1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.ckpt"]


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'a' is written twice"):
        write_checkpoint(tmp_path / "x", [("a", np.ones(1)), ("a", np.ones(1))])


def test_numbers_that_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a torch file cannot hold uint16"):
        write_checkpoint(tmp_path / "x.pt", {"a": np.ones(1, np.uint16)}, "torch")
    with pytest.raises(InputError, match="cannot hold complex64"):
        write_checkpoint(tmp_path / "x.ckpt", {"a": np.ones(1, np.complex64)})
    with pytest.raises(InputError, match="no shards"):
        write_checkpoint(tmp_path / "x", {"a": np.ones(1)}, "ckpt", shard_size=10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_the_room_needed_is_checked_before_anything_is_written(tmp_path: Path, small_disk: Path) -> None:
    write_checkpoint(tmp_path / "big.ckpt", {f"t{n}": np.ones(1 << 18, np.float32) for n in range(3)})  # 3 MB
    for format in FORMATS:
        with open_checkpoint(tmp_path / "big.ckpt") as source, pytest.raises(JobError) as caught:
            convert(source, small_disk / "out", format)
        assert "not enough room: 3.1 MB needed, 2.1 MB free" in caught.value.what and caught.value.exit_code == 1
    with open_checkpoint(tmp_path / "big.ckpt") as source, pytest.raises(JobError, match="not enough room"):
        write_slices(small_disk / "out", source, Layout(1, 2))
    assert list(small_disk.iterdir()) == []
    (small_disk / ".out.abc.part").mkdir()
    with (
        open_checkpoint(tmp_path / "big.ckpt") as source,
        pytest.raises(JobError, match="left by a run that was killed"),
    ):
        convert(source, small_disk / "out", "ckpt")


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_fills_up_leaves_no_target_and_says_what_was_needed(
    format: str, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "big.ckpt", {f"t{n}": np.ones(1 << 18, np.float32) for n in range(3)})
    monkeypatch.setattr(
        "spark13b.ckpt.writing.check_room", lambda _path, needed: needed
    )  # as if another program filled it
    with (
        open_checkpoint(tmp_path / "big.ckpt") as source,
        pytest.raises(JobError, match=r"disk is full: 3\.1 MB needed"),
    ):
        write_checkpoint(small_disk / "out", source, format)
    with pytest.raises(JobError, match="disk is full"):
        write_checkpoint(small_disk / "out", ((f"t{n}", np.ones(1 << 18, np.float32)) for n in range(3)), format)
    assert list(small_disk.iterdir()) == []


def test_kill_9_at_any_moment_leaves_no_half_target(memory_folder: Path) -> None:
    tensors = {f"t{n}": np.full(1 << 20, n, np.float32) for n in range(40)}
    size = 160 << 20
    write_checkpoint(memory_folder / "a.ckpt", tensors)
    target = memory_folder / "b.safetensors"
    line = [sys.executable, "-m", "spark13b", "ckpt", "convert", str(memory_folder / "a.ckpt"), str(target)]
    absent = 0
    for share in (0, 0.2, 0.5, 0.8, 0.99, *[0.1] * 20):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not _written(memory_folder) > share * size:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if target.exists():
            with open_checkpoint(target) as checkpoint:
                assert all(np.array_equal(checkpoint[name], array) for name, array in tensors.items())
            target.unlink()
        else:
            absent += 1
        for remains in memory_folder.glob(".b.safetensors.*.part"):
            subprocess.run(["rm", "-r", str(remains)], check=True)
        if share == 0.99 and absent:  # more only when each was done before it could be killed
            break
    assert absent > 0


def _written(folder: Path) -> int:
    """Bytes of what is being written there; -1: nothing yet."""
    sizes = []
    for draft in folder.glob(".b.safetensors.*.part*"):
        with contextlib.suppress(FileNotFoundError):
            sizes += [path.stat().st_size for path in (draft, *draft.rglob("*")) if path.is_file()]
    return sum(sizes) if sizes else -1
