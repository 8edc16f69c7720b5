"""`spark13b persona questions` and `persona eval` as a user meets them; MindSpore is never loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spark13b.cli.main import run

ENVIRONMENT = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
# a command that fails when it has loaded mindspore
WATCHED = "import sys; from spark13b.cli.main import run; code = run(sys.argv[1:]); "
WATCHED += "sys.exit(99 if 'mindspore' in sys.modules else code)"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A persona and four answers, one of a name in brackets; the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    persona = {"姓名|名字": "小雅", "年龄|岁数": "20岁"}
    Path("attribute.json").write_text(json.dumps(persona, ensure_ascii=False), encoding="utf-8")
    rows = [
        ("你几岁？", "二十"),
        ("你叫什么？", "[red]我是小度"),
        ("你多高？", "没有\x1b[31m身高"),
        ("你几岁？", "三十"),
    ]
    lines = [json.dumps({"input": question, "predict": answer}, ensure_ascii=False) for question, answer in rows]
    Path("answers.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


EVAL = ["persona", "eval", "--predictions", "answers.jsonl", "--attribute", "attribute.json"]


def test_questions_are_json_lines_on_stdout_and_mindspore_stays_away(folder):
    line = [sys.executable, "-c", WATCHED, "persona", "questions", "--attribute", "attribute.json"]
    result = subprocess.run(line, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8")
    assert (result.returncode, result.stderr) == (0, "")
    made = [json.loads(line) for line in result.stdout.splitlines()]
    assert {tuple(one) for one in made} == {("input", "attribute", "kind")}
    assert {one["attribute"] for one in made if one["kind"] == "set"} == {"姓名|名字", "年龄|岁数"}


def test_questions_for_training_are_written_to_a_file_and_are_others(folder, capsys):
    words = ["persona", "questions", "--attribute", "attribute.json", "--output"]
    assert run([*words, "test.jsonl"]) == run([*words, "train.jsonl", "--for", "train"]) == 0
    lines = {name: Path(f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in ("test", "train")}
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"test.jsonl: {len(lines['test'])} questions, ")
    asked = {name: {json.loads(line)["input"] for line in rows} for name, rows in lines.items()}
    assert not asked["test"] & asked["train"]
    assert run([*words, "test.jsonl"]) == 2  # it is there already
    assert run([*words, "test.jsonl", "--force", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["questions"] == counts["set"] + counts["unset"] == len(lines["test"])


def test_the_report_is_a_table_with_every_offending_answer(folder, capsys):
    assert run(EVAL) == 0
    shown = capsys.readouterr().out
    assert (
        "out-of-persona rate (人设跳出率) 50.0 %, availability (可用率) 50.0 %: 2 of 4 answers (judge: rules)" in shown
    )
    assert "line 2: 你叫什么？\n  [red]我是小度\n  claims to be somebody else: 小度" in shown
    assert "line 4: 你几岁？\n  三十\n  contradicts 年龄|岁数: 20岁" in shown
    assert "\x1b" not in shown


def test_the_report_is_json_and_markdown_too(folder, capsys):
    assert run([*EVAL, "--json", "--output", "r.json", "--markdown", "r.md"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["out_of_persona_rate"], report["availability"]) == (50, 50)
    assert json.loads(Path("r.json").read_text(encoding="utf-8")) == report
    assert "**50.0 %**" in Path("r.md").read_text(encoding="utf-8")
    assert run([*EVAL, "--markdown", "r.md"]) == 2  # it is there already
    assert run([*EVAL, "--markdown", "r.md", "--force"]) == 0


def test_check_measures_the_rule_judge_on_both_parts(capsys):
    assert run(["persona", "eval", "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tuning"]["answers"] + found["held_out"]["answers"] >= 300
    assert found["held_out"]["accuracy"] >= 86
    assert found["held_out_named"]["accuracy"] >= 97
    assert run(["persona", "eval", "--check"]) == 0
    shown = capsys.readouterr().out
    assert f"held_out: judge agrees with {found['held_out']['right']} of {found['held_out']['answers']} labels" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["persona", "eval", "--attribute", "attribute.json"], "no answers were given"),
        (["persona", "eval", "--predictions", "answers.jsonl"], "no persona was given"),
        ([*EVAL, "--check"], "--check measures a judge on answers of its own"),
        ([*EVAL, "--judge", "openai"], "no model was given to judge"),
        ([*EVAL, "--base-url", "http://127.0.0.1:1/v1"], "--judge rules asks no model"),
        ([*EVAL, "--judge", "labels"], 'the line has no "label"'),
        ([*EVAL, "--output", "x", "--markdown", "x"], "are the same file"),
        (["persona", "eval", "--predictions", "none", "--attribute", "attribute.json"], "there is no such file"),
    ],
)
def test_what_is_missing_or_too_much_is_said(words, message, folder, capsys):
    assert run(words) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_cannot_be_reached_fails_the_job_without_a_word_of_the_key(folder, capsys, monkeypatch):
    monkeypatch.setenv("SPARK13B_JUDGE_API_KEY", "secret-key")
    monkeypatch.setattr("spark13b.persona.judge_openai._FIRST_PAUSE", 0)
    words = ["--judge", "openai", "--base-url", "http://127.0.0.1:1/v1", "--model", "m", "--output", "r.json"]
    assert run([*EVAL, *words]) == 1
    printed = capsys.readouterr()
    assert "the judge cannot be reached" in printed.err
    assert "secret-key" not in printed.out + printed.err
    assert not Path("r.json").exists()


def test_the_example_of_the_page_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    text = (Path(__file__).parents[2] / "docs" / "persona.md").read_text(encoding="utf-8")
    block = next(
        part for part in re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) if "小爱" in part
    )
    for line, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
        words = line.split()
        if words[0] == "cat":
            Path(words[1]).write_text(shown, encoding="utf-8")
        else:
            assert run(words[1:]) == 0
            assert capsys.readouterr().out == shown


def test_the_accuracies_of_the_pages_are_those_of_today(capsys):
    assert run(["persona", "eval", "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    docs = Path(__file__).parents[2] / "docs"
    pages = [(docs / name).read_text(encoding="utf-8") for name in ("persona.md", "persona.zh-CN.md")]
    for part in ("tuning", "held_out"):
        shares = [one["right"] / one["answers"] for one in (found[f"{part}_named"], found[part])]
        numbers = f"| {found[part]['answers']} | {shares[0]:.1%} | {shares[1]:.1%} |".replace("%", " %")
        for text in pages:
            assert re.search(rf"^\| `{part}`.*{re.escape(numbers)}$", text, re.MULTILINE), numbers
