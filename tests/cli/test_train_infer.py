"""preprocess -> train -> infer as a user does it, on real instructions with the cpu-tiny preset; processes first."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ALPACA = Path(__file__).parents[3] / "shared" / "data" / "alpaca_zh_demo.json"
if not ALPACA.exists():  # outside the workplace: the 200 records that the golden rows were made of
    ALPACA = Path(__file__).parents[1] / "golden" / "preprocess" / "alpaca200.json"
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A real process, which must end well."""
    command = [sys.executable, "-m", "spark13b", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer trained on the instructions, their rows, and a run of 50 steps of cpu-tiny."""
    folder = tmp_path_factory.mktemp("life")
    process("tokenizer", "train", "--input", ALPACA, "--output", folder / "tok", "--vocab-size", 2000)
    process(
        *("preprocess", "sft", "--input", ALPACA, "--output", folder / "rows.mindrecord"),
        *("--tokenizer", folder / "tok", "--seq-length", 128, "--overlong", "split"),
    )
    trained = process(
        *("train", "--preset", "cpu-tiny-sft", "--data", folder / "rows.mindrecord", "--output", folder / "run"),
        *("--set", "train.steps=50", "--json"),
    )
    (folder / "train.json").write_text(trained.stdout)
    (folder / "train.log").write_text(trained.stderr)
    return folder


def test_in_50_steps_the_loss_falls_by_more_than_30_percent(folder):
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 50
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    result = json.loads((folder / "train.json").read_text())
    assert result["last_loss"] < 0.7 * result["first_loss"]


def test_progress_and_notes_go_to_stderr_and_show_loss_rate_and_speed(folder):
    log = (folder / "train.log").read_text()
    assert "training by the native library (" in log or "attention: plain (" in log
    assert "training: 50/50 steps loss " in log
    assert "tokens/s" in log
    assert "WARNING" not in log


def test_a_checkpoint_folder_and_a_preset_with_a_tokenizer_serve_as_well_as_a_run(folder, spark13b):
    checkpoint = folder / "run" / "checkpoints" / "step-00000050"
    weights = checkpoint / "rank_0" / "model.ckpt"
    bare = folder / "bare.ckpt"
    bare.write_bytes(weights.read_bytes())
    result = process("infer", "你好", "--load", folder / "run", "--max-new-tokens", 8)
    whole = result.stdout
    assert len(whole.strip()) > 0
    assert whole.endswith("\n")
    assert "tokens/s" in result.stderr
    assert spark13b("infer", "你好", "--load", checkpoint, "--max-new-tokens", 8).stdout == whole
    options = ("--preset", "cpu-tiny-infer", "--tokenizer", folder / "tok", "--max-new-tokens", 8)
    assert spark13b("infer", "你好", "--load", bare, *options).stdout == whole


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt-file", "empty.jsonl"], "the file is empty"),
        (["你好", "--tokenizer", "."], "tokenizer.model"),
        (["你好", "--output", "/proc/answers.jsonl"], "cannot write here"),
        (["你好", "--preset", "800T-A2-infer"], "MindSpore sees none here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_questions_are_refused_before_any_is_answered(folder, tmp_path, spark13b, monkeypatch, arguments, says):
    (tmp_path / "empty.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    result = spark13b("infer", *arguments, "--load", folder / "run", code=2)
    assert result.stdout == ""
    assert result.stderr.count("error:") == 1
    assert says in result.stderr
    assert "fix:" in result.stderr


def test_without_any_model_the_message_says_how_to_get_one(tmp_path, spark13b, monkeypatch):
    monkeypatch.setenv("SPARK13B_HOME", str(tmp_path))
    result = spark13b("infer", "你好", code=2)
    assert "run 'spark13b demo' first" in result.stderr


def test_ctrl_c_while_training_saves_and_resume_goes_on(folder, tmp_path, spark13b):
    command = [sys.executable, "-m", "spark13b", "train", "--preset", "cpu-tiny-sft", "--output", str(tmp_path / "run")]
    command += [
        "--data",
        str(folder / "rows.mindrecord"),
        "--set",
        "train.steps=100000",
        "--set",
        "schedule.warmup_steps=0",
    ]
    command += ["--set", "model.num_layers=1", "--set", "model.hidden_size=32", "--set", "model.ffn_hidden_size=64"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=100)
    assert running.returncode == 1
    assert "it is saved" in error
    done = len(metrics.read_text().splitlines())
    resumed = spark13b(
        *("train", "--resume", "--output", tmp_path / "run", "--data", folder / "rows.mindrecord"),
        *("--set", f"train.steps={done + 2}", "--json"),
    )
    assert json.loads(resumed.stdout)["steps"] == done + 2


def test_a_dry_run_prints_the_plan_of_a_preset_for_npus_without_one(folder, spark13b):
    result = spark13b(
        *("train", "--preset", "800T-A2-sft", "--data", folder / "rows.mindrecord", "--dry-run", "--json"),
        *("--set", "model.seq_length=128"),
    )
    plan = json.loads(result.stdout)
    assert (plan["parameters"], plan["devices"], plan["tokens"]) == (13_312_542_720, 8, 128)
    assert plan["steps"] == -(-10 * plan["rows"] // 2)  # ten epochs, two rows a step


@pytest.mark.parametrize("command", ["train", "lora"])
def test_to_go_on_with_a_run_and_to_replace_it_are_not_done_at_once(folder, spark13b, command):
    before = (folder / "run" / "environment.json").read_bytes()
    words = (command, "--output", folder / "run", "--data", folder / "rows.mindrecord", "--resume", "--force")
    assert spark13b(*words, code=2).stderr == (
        "error: --resume goes on with the run in --output, --force replaces it\n  fix: leave out one of the two\n"
    )
    assert (folder / "run" / "environment.json").read_bytes() == before


def test_a_terminal_gets_a_bar(folder):
    main, worker = pty.openpty()
    command = [sys.executable, "-m", "spark13b", "infer", "--load", str(folder / "run"), "--max-new-tokens", "2"]
    command += ["--output", str(folder / "bar.jsonl"), "--force", "你好", "再见"]
    env = {key: value for key, value in ENVIRONMENT.items() if key != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "60"}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=worker, env=env)
    os.close(worker)
    shown = b""
    try:
        while chunk := os.read(main, 4096):
            shown += chunk
    except OSError:  # the terminal is gone when the process is
        pass
    assert running.wait() == 0
    assert b"answering" in shown
    assert "2/2" in shown.decode()
