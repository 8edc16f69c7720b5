"""The journal: what was added is there at the next start, whatever ended the process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from spark13b.errors import InputError, JobError
from spark13b.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.partial"


def test_records_are_found_again_by_number(path: Path) -> None:
    with Journal(path, "a") as journal:
        journal.add(7, {"text": "你好"})
        journal.add(2, [1, 2])
        assert (len(journal), 7 in journal, 1 in journal, journal[7]) == (2, True, False, {"text": "你好"})
    with Journal(path, "a") as journal:
        journal.add(3, "later")
        assert [journal[number] for number in (2, 7, 3)] == [[1, 2], {"text": "你好"}, "later"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_cut_off_by_the_end_of_the_process_is_forgotten_and_no_other(path: Path, cut: int) -> None:
    with Journal(path, "a") as journal:
        journal.add(0, "first")
        journal.add(1, "second")
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, "a") as journal:
        assert (0 in journal, 1 in journal) == (True, False)
        journal.add(1, "again")
    assert [json.loads(line).get("record") for line in path.read_text().splitlines()] == [None, "first", "again"]


def test_what_belongs_to_something_else_is_kept_without_force(path: Path) -> None:
    with Journal(path, "a") as journal:
        journal.add(0, "x")
    with pytest.raises(InputError, match="answers to other prompts"):
        Journal(path, "b")
    with Journal(path, "b", force=True) as journal:
        assert len(journal) == 0


def test_only_one_process_writes_at_a_time(path: Path) -> None:
    with Journal(path, "a") as journal, pytest.raises(InputError, match="another spark13b is writing"):
        Journal(path, "a")
        journal.add(0, "x")


def test_an_empty_or_a_removed_journal_leaves_no_file(path: Path) -> None:
    with Journal(path, "a"):
        assert path.exists()
    assert not path.exists()
    with Journal(path, "a") as journal:
        journal.add(0, "x")
        journal.remove()
        assert not path.exists()


def test_a_full_disk_is_told_with_its_place(path: Path) -> None:
    with (
        Path("/dev/full").open("wb") as full,  # every write to it fails
        pytest.raises(JobError, match="the disk is full"),
        Journal(path, "a") as journal,
    ):
        journal.add(0, "x")
        os.dup2(full.fileno(), journal._file.fileno())
        journal.add(1, "y")
