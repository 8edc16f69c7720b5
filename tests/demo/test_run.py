"""The demo's steps, with fewer of them: what it leaves behind, that it goes on, and that infer finds its model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spark13b.config import Preset
from spark13b.data.place import Place
from spark13b.demo import persona_act
from spark13b.demo import run as demo
from spark13b.demo.corpus import Question
from spark13b.errors import InputError
from spark13b.infer.session import demo_folder
from spark13b.persona.evaluation import by_rules
from spark13b.persona.kinds import target_named
from spark13b.persona.predictions import Answer


def silent(question: Question, pieces: Iterator[str]) -> str:
    return "".join(pieces)


def unseen(question: str, before: str, after: str) -> None:
    assert question in persona_act.FIRST


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """SPARK13B_HOME with a demo of very few steps, and one layer, in it."""
    home = tmp_path_factory.mktemp("home")
    whole = demo._preset

    def small(*arguments: Any) -> Preset:
        preset = whole(*arguments)
        return preset.model_copy(update={"model": preset.model.model_copy(update={"num_layers": 1})})

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK13B_HOME", str(home))
        patch.setattr(demo, "_preset", small)
        patch.setattr(demo, "PRETRAIN_STEPS", 12)
        patch.setattr(demo, "SFT_STEPS", 12)
        patch.setattr(demo, "PERSONA_STEPS", 2)
        patch.setattr(demo, "ANSWER_TOKENS", 3)
        demo.run_demo(demo_folder(), 0, False, silent, unseen, shown=4)
        yield home


def test_a_demo_leaves_every_step_of_a_model_s_life_and_a_summary(home):
    files = demo.DemoFiles(home / "demo")
    assert {"pretrain.jsonl", "sft.jsonl", "held_out.jsonl"} == {path.name for path in files.corpus.iterdir()}
    assert (files.tokenizer / "tokenizer.model").is_file()
    assert files.pretrain_rows.is_file()
    assert files.sft_rows.is_file()
    for run in (files.pretrain, files.sft):
        assert run.curve.read_bytes().startswith(b"\x89PNG")
        assert run.checkpoints() == [run.checkpoint(12)]
    summary = json.loads(files.summary.read_text())
    assert summary["questions"] == 200
    assert summary["accuracy"] == summary["right"] / 200
    assert sum(right for right, _ in summary["by_kind"].values()) == summary["right"]
    act, persona = files.persona, summary["persona"]
    assert act.run.checkpoints() == [act.run.checkpoint(2)]
    assert json.loads(act.attributes.read_text()) == persona_act.PERSONA
    assert persona == json.loads(act.summary.read_text())
    assert (persona["asked"], persona["others"]) == (len(act.after.read_text().splitlines()), 150)
    assert 0 <= persona["out_after"] <= persona["asked"]


def test_no_question_that_the_persona_is_tested_with_is_one_that_it_was_trained_with():
    trained = {question for question, _ in persona_act.training_questions()}
    tested = {question.input for question in persona_act.asked("test")}
    assert len(trained) > 200
    assert len(tested) > 50
    assert not trained & tested
    assert set(persona_act.FIRST) <= tested
    keys = {answer: key for key, answer in persona_act.SAYS.items()}
    for question, answer in persona_act.training_questions():
        target = target_named(keys[answer], persona_act.PERSONA)
        one = Answer(question, answer, target, None, Place(Path("x"), 1))
        assert by_rules(persona_act.PERSONA)(one).in_persona, (question, answer)


def test_what_is_there_is_not_made_again_and_the_questions_get_the_same_answers(home):
    files = demo.DemoFiles(home / "demo")
    before = {path: path.stat().st_mtime_ns for path in files.folder.rglob("*") if path.is_file()}
    first = json.loads(files.summary.read_text())
    again = demo.run_demo(files.folder, 0, False, silent, unseen, shown=0)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path.name for path in before if after[path] != before[path]] == ["summary.json"]
    assert again.right == first["right"]


def test_another_seed_needs_force(home):
    with pytest.raises(InputError, match="seed 0, not 1"):
        demo.run_demo(home / "demo", 1, False, silent, unseen)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError, match="something else"):
            demo.run_demo(tmp_path, 0, force, silent, unseen)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_infer_without_arguments_uses_the_demo_s_model_and_says_so(home):
    result = subprocess.run(
        [sys.executable, "-m", "spark13b", "infer", "你是谁？", "--max-new-tokens", "4"],
        capture_output=True,
        text=True,
        env={**os.environ, "SPARK13B_HOME": str(home), "NO_COLOR": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "the model of 'spark13b demo' answers" in result.stderr
    assert str(home / "demo" / "sft") in result.stderr


def test_questions_of_all_kinds_and_languages_are_shown_first():
    from spark13b.demo.corpus import build_corpus

    first = demo._mixed(build_corpus(0))[:8]
    assert len({(question.kind, question.language) for question in first}) == 8
