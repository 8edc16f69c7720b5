"""What `infer`, `chat` and `serve` share: a preset of a beam search in each of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import Run

from infer.small_run import write_small_run


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder whose preset searches with three beams."""
    folder = tmp_path_factory.mktemp("answering") / "run"
    return write_small_run(folder, model__num_layers=1, generation__num_beams=3, generation__max_new_tokens=4)


def test_beams_have_seats_where_they_are_searched(searching: Path, spark13b: Run) -> None:
    def seats(command: str, option: str) -> int:
        plan = spark13b(command, "--load", searching, option, 1, "--dry-run", "--json").stdout
        return int(json.loads(plan)["seats"])

    assert seats("infer", "--batch-size") == 3
    assert seats("serve", "--seats") == 1  # whose clients ask for no beams


def test_a_chat_searches_as_infer_does(searching: Path, spark13b: Run) -> None:
    found = spark13b("infer", "hello", "--load", searching).stdout
    command = [sys.executable, "-m", "spark13b", "chat", "--load", str(searching)]
    assert subprocess.run(command, input="hello\n", capture_output=True, text=True).stdout == found
