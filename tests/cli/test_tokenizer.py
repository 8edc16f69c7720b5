"""`spark13b tokenizer` as a user meets it: real processes, exit codes, and MindSpore never loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sentencepiece

GOLDEN = Path(__file__).parents[1] / "golden"
ALPACA = GOLDEN / "preprocess" / "alpaca200.json"
MODEL = GOLDEN / "tokenizer" / "tokenizer.model"
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
# a command that fails when it has loaded mindspore
WATCHED = "import sys; from spark13b.cli.main import run; code = run(sys.argv[1:]); "
WATCHED += "sys.exit(99 if 'mindspore' in sys.modules else code)"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", WATCHED, "tokenizer", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_train_then_check(tmp_path):
    folder = tmp_path / "tok"
    result = run("train", "--input", ALPACA, ALPACA, "--output", folder, "--vocab-size", 1000)
    assert result.returncode == 0
    fingerprint = result.stdout.split()[-1]
    assert result.stdout == f"{folder}: 1,000 pieces, fingerprint {fingerprint}\n"
    twice = f"note: {ALPACA} is read 2 times, and what it says counts as often\n"
    assert result.stderr == twice + "read: 297,512/297,512 bytes\n"
    assert names(folder) == ["tokenizer.model", "tokenizer.vocab"]
    checked = run("check", folder)
    assert (checked.returncode, checked.stderr) == (0, "")
    for words in ("pieces          1,000", "<end> 5", "256 of 256 byte pieces", fingerprint, "'第一行\\n第二行'"):
        assert words in checked.stdout
    as_json = json.loads(run("check", folder, "--json").stdout)
    assert (as_json["fingerprint"], as_json["fit"]) == (fingerprint, True)
    assert as_json["special_tokens"]["<pad>"] == 0


def test_fewer_pieces_than_asked_for_are_a_note_and_json_is_alone_on_stdout(tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("你好，世界\n", encoding="utf-8")
    result = run("train", "--input", source, "--output", tmp_path / "tok", "--vocab-size", 8000, "--json")
    assert result.returncode == 0
    pieces = json.loads(result.stdout)["pieces"]
    assert f"note: the text gave {pieces} pieces, not 8,000" in result.stderr


def test_sentencepieces_log_is_shown_with_debug_only(tmp_path):
    arguments = ["train", "--input", ALPACA, "--vocab-size", 400, "--output"]
    assert "trainer_interface" not in run(*arguments, tmp_path / "a").stderr
    loud = [sys.executable, "-m", "spark13b", "--debug", "tokenizer", *map(str, arguments), str(tmp_path / "b")]
    assert "trainer_interface" in subprocess.run(loud, env=ENVIRONMENT, capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((b"<end>", b"<fin>"), "the tokenizer has no <end>"),
        ((b"\x18\x06", b"\x18\x01"), "SentencePiece refuses this model: "),
        ((b"\x0a", b"\x0b"), "not a SentencePiece model"),
    ],
)
def test_check_of_a_tokenizer_that_is_not_fit_names_what_is_missing(tmp_path, change, words):
    (tmp_path / "tokenizer.model").write_bytes(MODEL.read_bytes().replace(*change))
    result = run("check", tmp_path)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert words in lines[0]
    assert lines[1] == f"  at: {tmp_path / 'tokenizer.model'}"
    assert lines[2].startswith("  fix: ")


def test_check_of_a_tokenizer_without_byte_fallback_names_it_and_still_shows_the_rest(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["今天天气很好"] * 9),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=400,
        hard_vocab_limit=False,
        user_defined_symbols=["<end>", "<ret>", "<User>", "<Bot>"],
        pad_id=3,
        minloglevel=2,
    )
    result = run("check", tmp_path)
    assert result.returncode == 2
    assert "byte fallback   0 of 256 byte pieces" in result.stdout
    assert "lost" in result.stdout
    assert "the tokenizer has 0 of the 256 byte pieces <0x00> to <0xFF>" in result.stderr
    as_json = run("check", tmp_path, "--json")
    assert as_json.returncode == 2
    assert json.loads(as_json.stdout)["fit"] is False


@pytest.mark.parametrize("arguments", [["train"], ["check"]])
def test_help_ends_with_an_example(arguments):
    result = run(*arguments, "--help")
    assert result.returncode == 0
    assert result.stdout.rstrip().splitlines()[-1].startswith(f" Example: spark13b tokenizer {arguments[0]} ")


def test_ctrl_c_while_sentencepiece_trains_leaves_nothing_and_no_process(tmp_path):
    source = tmp_path / "large.txt"
    lines = [record["output"].replace("\n", " ") for record in json.loads(ALPACA.read_text(encoding="utf-8"))]
    source.write_text("\n".join(f"{line} {turn}{line[::-1]}" for turn in range(30) for line in lines), encoding="utf-8")
    arguments = ["train", "--input", source, "--output", tmp_path / "tok", "--vocab-size", 8000]
    process = subprocess.Popen(command(*arguments), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 100
    while not children.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    child = int(children.read_text())
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode in (1, 130)
    assert "Traceback" not in stderr
    assert not Path(f"/proc/{child}").exists()
    assert names(tmp_path) == ["large.txt"]
