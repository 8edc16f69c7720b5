"""`spark13b preprocess` as a user meets it: real processes, exit codes, stdout, and what is left on the disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spark13b.data.mindrecord import open_rows, read_manifest, row_info

GOLDEN = Path(__file__).parents[1] / "golden"
ALPACA = GOLDEN / "preprocess" / "alpaca200.json"
TOKENIZER = GOLDEN / "tokenizer"
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "spark13b", "preprocess", *map(str, arguments)]


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8"
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(kind: str, source: Path, *arguments: object, tokenizer: Path = TOKENIZER, at: str | None = None) -> str:
    """The message of a command that must fail with exit code 2, name a place and a cure, and leave no file behind."""
    before = names(source.parent)
    output = source.parent / "rows.mindrecord"
    result = run(kind, "--input", source, "--output", output, "--tokenizer", tokenizer, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    lines = [line for line in result.stderr.splitlines() if not line.startswith("preprocess ")]  # progress
    assert [line.split()[0] for line in lines] == ["error:", "at:", "fix:"]
    assert lines[1] == f"  at: {at or source}"
    assert names(source.parent) == before
    return lines[0]


def test_sft_prints_the_ledger_on_stdout_and_progress_on_stderr(tmp_path):
    output = tmp_path / "rows.mindrecord"
    result = run("sft", "--input", ALPACA, "--output", output, "--tokenizer", TOKENIZER, "--seq-length", 1024)
    assert result.returncode == 0
    assert result.stdout.splitlines()[:10] == [
        str(output),
        "  read       200",
        "  kept       200  (packed 200, truncated 0, split 0)",
        "  dropped    0",
        "  tokens     38,375  (learned 26,379, lost 0)",
        "  rows       43",
        "  fill rate  87.07%",
        "  text       1.91 characters a token",
        "  formats    alpaca 200",
        "  lengths in tokens",
    ]
    assert result.stderr == "preprocess sft: 148,756/148,756 bytes tokens 38,375 rows 43\n"
    assert row_info(output) == (43, 1025, ("input_ids", "loss_mask"))


def test_pretrain_takes_many_files_after_one_input_and_prints_json(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(f"{name}\n", encoding="utf-8")
    options = ["--output", "rows.mindrecord", "--tokenizer", TOKENIZER, "--seq-length", 63, "--json"]
    result = run("pretrain", "--input", "b.txt", "a.txt", *options, cwd=tmp_path)
    assert result.returncode == 0
    ledger = json.loads(result.stdout)
    assert (ledger["read"], ledger["kept"], ledger["packed"], ledger["rows"]) == (2, 2, 2, 1)
    assert set(ledger) >= {"truncated", "split", "dropped", "tokens", "fill_rate"}
    manifest = read_manifest(tmp_path / "rows.mindrecord")
    assert manifest is not None
    assert [Path(entry.path).name for entry in manifest.inputs] == ["b.txt", "a.txt"]
    again = run("pretrain", *options, "--force", "--input", "b.txt", "--input", "a.txt", cwd=tmp_path)
    assert json.loads(again.stdout) == ledger
    refused_again = run("pretrain", *options, "--input", "a.txt", cwd=tmp_path)
    assert refused_again.returncode == 2
    assert "already exists" in refused_again.stderr


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_help_ends_with_an_example_and_loads_no_mindspore(kind):
    script = f"import sys; from spark13b.cli.main import run; run(['preprocess', '{kind}', '--help']); "
    script += "sys.exit('mindspore' in sys.modules or 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.rstrip().splitlines()[-1].startswith(f" Example: spark13b preprocess {kind} --input")


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.json", b"", None, "the file is empty"),
        (
            "a.json",
            b'[{"instruction": "a", "output": "b"},\n {"instruction": "c", "out',
            2,
            "cut off after 1 whole record",
        ),
        ("a.jsonl", b'{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n', 2, "the record has no 'output'"),
        ("a.jsonl", b'{"instruction": "a", "output": "b"}\n{"output": "\xff"}\n', 2, "byte 0xff is not UTF-8"),
        ("a.txt", b"only text\n", 1, "a text has no question and no answer"),
    ],
)
def test_broken_input_is_named_with_its_line(tmp_path, name, content, line, words):
    source = tmp_path / name
    source.write_bytes(content)
    assert words in refused("sft", source, at=f"{source}:{line}" if line else None)


def test_an_example_that_is_too_long_is_named_with_its_tokens(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"instruction": "问", "output": "' + "天地玄黄" * 50 + '"}\n', encoding="utf-8")
    message = refused("sft", source, "--seq-length", 31, at=f"{source}:1")
    assert "tokens (6 of them the prompt), a row holds 32" in message


def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path):
    source = tmp_path / "in" / "a.txt"
    source.parent.mkdir()
    source.write_text("a\n")
    assert "no tokenizer.model" in refused("pretrain", source, tokenizer=tmp_path, at=str(tmp_path))
    model = tmp_path / "tok" / "tokenizer.model"
    model.parent.mkdir()
    content = (TOKENIZER / "tokenizer.model").read_bytes()
    model.write_bytes(content.replace(b"<end>", b"<fin>").replace(b"<ret>", b"<rut>"))
    message = refused("pretrain", source, tokenizer=model.parent, at=str(model))
    assert message == "error: the tokenizer has no <end>, <ret>"


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("a\n")
    result = run("pretrain", "--input", source, "--output", "/proc/rows.mindrecord", "--tokenizer", TOKENIZER)
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot write here")
    assert "  at: /proc\n" in result.stderr


def test_ctrl_c_leaves_nothing_behind_and_an_old_output_alone(tmp_path):
    output = tmp_path / "rows.mindrecord"
    small = ["--input", ALPACA, "--output", output, "--tokenizer", TOKENIZER, "--seq-length", 256]
    assert run("pretrain", *small).returncode == 0
    source = tmp_path / "large.jsonl"
    source.write_text(json.dumps({"text": "今天天气很好，" * 100}) + "\n")
    with source.open("ab") as stream:
        line = source.read_bytes()
        for _ in range(25):
            stream.write(line * 1000)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    large = ["--input", source, "--output", output, "--tokenizer", TOKENIZER, "--seq-length", 256, "--force"]
    process = subprocess.Popen(command("pretrain", *large), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("*.partial/rows/shard-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode in (1, 130)
    assert "Traceback" not in stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert len(next(open_rows(output, 4))[0]) == 4


def test_everything_the_page_shows_happens(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    shown = "".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL))
    commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)
    assert len(commands) == 9
    for line, expected in commands:
        words = line.split()
        if words[0] == "cat":
            (tmp_path / words[1]).write_text(expected, encoding="utf-8")
            continue
        words[:1] = [sys.executable, "-m", "spark13b"]
        ran = subprocess.run(
            words, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )
        assert without_hashes(ran.stdout) == without_hashes(expected), line
    ((script, expected),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert ran.stdout == expected


def without_hashes(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{64}\b", "HASH", text)


def test_a_file_that_is_read_twice_by_whatever_name_is_told_at_the_start_and_in_the_report(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "a.json").write_bytes(ALPACA.read_bytes())
    (tmp_path / "link.json").symlink_to("a.json")
    (tmp_path / "more" / "copy.json").write_bytes(ALPACA.read_bytes())
    words = ("--tokenizer", TOKENIZER, "--seq-length", 1024)
    inputs = ("sft", "--input", "a.json", "link.json", "more/../a.json", "more")
    result = run(*inputs, "--output", "rows.mindrecord", *words, cwd=tmp_path)
    assert result.stderr.startswith(
        "note: a.json is read 3 times, also as link.json, more/../a.json, "
        "and its records are in the rows as often; --deduplicate keeps each once\n"
    )
    assert "  read       800\n" in result.stdout
    assert "  repeated   a.json 3 times, more/copy.json  (the same bytes; --deduplicate" in result.stdout
    report = json.loads((tmp_path / "rows.mindrecord.report.json").read_text())
    assert report["repeated"] == [[str(tmp_path / "a.json")] * 3 + [str(tmp_path / "more" / "copy.json")]]
    once = run(*inputs, "--output", "once.mindrecord", "--deduplicate", "--json", *words, cwd=tmp_path)
    assert "note:" not in once.stderr
    told = json.loads(once.stdout)
    assert (told["read"], told["duplicates"], told["repeated"]) == (800, 600, [])


def test_a_folder_is_read_without_what_an_earlier_or_unfinished_job_wrote_into_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "你好", "output": "你好！"}\n{"instruction": 1}\n')
    words = ("sft", "--input", ".", "--tokenizer", TOKENIZER, "--seq-length", 64, "--on-error", "skip")
    assert run(*words, "--output", "rows.mindrecord", cwd=tmp_path).returncode == 0
    assert (tmp_path / "rows.mindrecord.errors.jsonl").exists()
    unfinished = tmp_path / "other.mindrecord.partial"
    unfinished.mkdir()
    (unfinished / "job.json").write_text("{}")
    (unfinished / "errors.jsonl").write_text("{}\n")
    for inputs in (".", "*.json*"):
        words = (*words[:2], inputs, *words[3:])
        again = run(*words, "--output", "again.mindrecord", "--json", "--force", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert (json.loads(again.stdout)["read"], json.loads(again.stdout)["bad"]) == (2, 1)


@pytest.mark.parametrize("word", [("--input", ""), ("--input=",), ("--input", "a.jsonl", "")])
def test_an_empty_input_is_not_the_folder_that_the_user_is_in(tmp_path, word):
    (tmp_path / "a.jsonl").write_text('{"output": "a"}\n')
    result = run("pretrain", *word, "--output", "rows.mindrecord", "--tokenizer", TOKENIZER, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: --input is given an empty name" in result.stderr
    assert names(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("option", ["--output", "--eval-output"])
@pytest.mark.parametrize("folder", [".", "", "/", ".."])
def test_an_output_that_is_a_folder_is_refused_even_if_it_has_no_name(tmp_path, spark13b, monkeypatch, option, folder):
    monkeypatch.chdir(tmp_path)
    words = ["--output", "rows.mindrecord", "--eval-fraction", "0.1", option, folder]
    said = spark13b("preprocess", "pretrain", "--input", ALPACA, "--tokenizer", TOKENIZER, *words, code=2)
    assert "error: the output is a folder\n" in said.stderr
    assert names(tmp_path) == []
