"""Two processes that share a model answer as one that has it whole."""

from __future__ import annotations

import json
from pathlib import Path

from infer.small_model import small_model
from infer.together_worker import CASES, SHAPE, answers
from spark13b.cluster.launch import Launch, launch
from spark13b.cluster.msrun import MsrunWorkers
from spark13b.infer.engine import Engine


def test_two_processes_give_the_tokens_of_one(tmp_path: Path) -> None:
    """Greedy past the window, in company, drawn, and with beams."""
    output, worker = tmp_path / "answers.json", Path(__file__).with_name("together_worker.py")
    launch(Launch(MsrunWorkers(nproc=2), tmp_path / "logs"), [str(worker), str(tmp_path / "s"), str(output)])
    model, _ = small_model(**SHAPE)
    expected = answers(Engine(model, seats=3, chunk=16))
    assert json.loads(output.read_text()) == expected
    assert [len(answer) for answer in expected[:3]] == [case["max_new_tokens"] for case in CASES[:3]]
