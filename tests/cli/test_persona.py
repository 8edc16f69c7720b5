"""`spark13b persona concat` and `persona extract` as a user meets them: real processes against a real server."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from persona.spark_server import APP_ID, KEY, SECRET, SparkServer, running
from spark13b.persona.frame import frame

KEYS = {"SPARK_APP_ID": APP_ID, "SPARK_API_KEY": KEY, "SPARK_API_SECRET": SECRET}
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
# a command that fails when it has loaded mindspore
WATCHED = "import sys; from spark13b.cli.main import run; code = run(sys.argv[1:]); "
WATCHED += "sys.exit(99 if 'mindspore' in sys.modules else code)"
FAST = ("--rate", "0", "--backoff", "0.01", "--timeout", "2")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", WATCHED, *map(str, arguments)]


def run(*arguments: object, keys: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in KEYS} | (keys or {})
    return subprocess.run(command(*arguments), env=environment, capture_output=True, text=True, encoding="utf-8")


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lines_for(folder: Path, count: int) -> list[str]:
    lines = [frame({"姓名": "小雅"}, f"第{number}个问题？", "参考") for number in range(count)]
    (folder / "output.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return lines


def extract(folder: Path, server: SparkServer) -> list[object]:
    files = ["--input", folder / "output.txt", "--output", folder / "qa_data.json"]
    return ["persona", "extract", *files, "--base-url", server.url]


def test_from_a_template_and_a_persona_to_rows_for_training(tmp_path: Path) -> None:
    template, attribute = tmp_path / "T.jsonl", tmp_path / "attribute.json"
    template.write_text('{"input": "你叫什么？", "target": "我叫{讯飞}##"}\n{"input": "几岁？", "target": "不知道"}\n')
    attribute.write_text('{"姓名|名字": "小雅", "年龄": "20岁"}')
    output = tmp_path / "output.txt"
    made = run("persona", "concat", "--template", template, "--attribute", attribute, "--output", output)
    assert (made.returncode, made.stdout, made.stderr) == (0, f"{output}: 2 lines\n", "")
    with running(lambda question, time: 10013 if "几岁" in question else "answer") as server:
        result = run(*extract(tmp_path, server), *FAST, keys=KEYS)
    assert result.returncode == 0, result.stderr
    errors = tmp_path / "data_exception.json"
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'qa_data.json'}: 1 answers to 2 lines",
        f"{errors}: 1 lines without an answer",
        "  1 x no (code 10013)",
    ]
    assert result.stderr.splitlines()[-1].startswith("asking: 2/2 lines answered 1 without answer 1 asked again 0")
    assert set(server.asked) == set(output.read_text(encoding="utf-8").splitlines())
    assert [one["input"] for one in records(tmp_path / "qa_data.json")] == ["你叫什么？"]
    tokenizer = Path(__file__).parents[1] / "golden" / "tokenizer"
    rows = ["--output", tmp_path / "rows.mindrecord", "--tokenizer", tokenizer, "--seq-length", 128]
    trained = subprocess.run(
        [sys.executable, "-m", "spark13b", "preprocess", "sft", "--input", tmp_path / "qa_data.json", *map(str, rows)],
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr


@dataclass
class Killed:
    """A job of 300 lines that was killed twice; `held` is what its journal held then, `asked` what had been asked."""

    folder: Path
    lines: list[str]
    faults: list[str]
    held: list[set[int]] = field(default_factory=list)
    asked: list[Counter[str]] = field(default_factory=list)

    def all_asked(self) -> Counter[str]:
        """How often each line was asked in the end."""
        return self.asked[-1]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """300 lines, with faults at random and two kill -9."""
    folder = tmp_path_factory.mktemp("killed")
    lines, dice = lines_for(folder, 300), random.Random(7)
    faults = [dice.choice(["busy", "hang", "drop", "refuse", "length", *["answer"] * 10]) for _ in lines]
    job = Killed(folder, lines, faults)
    fault_of = dict(zip(lines, faults, strict=True))

    def plan(question: str, time: int) -> str | int:
        if server.asked.total() > most:  # so that no process gets far before it is killed
            return "hang"
        fault = fault_of[question]
        if fault in ("refuse", "length"):
            return 10013 if fault == "refuse" else 10907
        return "answer" if time > 1 else 11202 if fault == "busy" else fault

    journal = folder / "qa_data.json.partial"
    with running(plan, seconds=0.03) as server:
        call = [*extract(folder, server), *FAST, "--concurrency", 16]
        for enough in (80, 180):
            most = server.asked.total() + 160
            with subprocess.Popen(command(*call), env=ENVIRONMENT | KEYS, stderr=subprocess.PIPE) as process:
                while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > enough):
                    time.sleep(0.01)
                process.kill()
            assert process.returncode == -signal.SIGKILL
            kept = [json.loads(line)["index"] for line in journal.read_bytes().split(b"\n")[1:-1]]
            job.held.append(set(kept))
            job.asked.append(server.asked.copy())
        most = 10_000
        last = run(*call, keys=KEYS)
        assert last.returncode == 0, last.stderr
        assert f"{len(job.held[1])} lines are done by an earlier run" in last.stderr
        job.asked.append(server.asked.copy())
        assert server.wrong == []
        assert server.most_at_once <= 2 * 16  # those of a killed process may still be under way
    assert not journal.exists()
    return job


def test_after_two_kills_every_line_is_in_exactly_one_of_the_files(killed: Killed) -> None:
    answered = records(killed.folder / "qa_data.json")
    failed = records(killed.folder / "data_exception.json")
    refused = [fault in ("refuse", "length") for fault in killed.faults]
    assert [one["input"] for one in answered] == [f"第{n}个问题？" for n, no in enumerate(refused) if not no]
    assert [one["line"] for one in failed] == [n + 1 for n, no in enumerate(refused) if no]
    assert all(one["output"] == "答:" + killed.lines[int(one["input"][1:-4])][-60:] for one in answered)


def test_after_two_kills_no_line_that_was_done_has_been_asked_again(killed: Killed) -> None:
    assert 80 <= len(killed.held[0]) < 180 <= len(killed.held[1]) < 300
    for held, asked in zip(killed.held, killed.asked, strict=False):
        for number in held:
            line = killed.lines[number - 1]
            assert killed.all_asked()[line] == asked[line], number
    under_way = killed.all_asked().total() - sum(1 + (fault in ("busy", "hang", "drop")) for fault in killed.faults)
    assert under_way <= 2 * 2 * 16  # lines that were being asked when the process was killed


@pytest.mark.parametrize("wrong", ["SPARK_API_KEY", "SPARK_API_SECRET"])
def test_refused_credentials_stop_at_once_and_are_not_shown(tmp_path: Path, wrong: str) -> None:
    lines_for(tmp_path, 50)
    with running() as server:
        result = run("--debug", *extract(tmp_path, server), *FAST, keys=KEYS | {wrong: "a-wrong-one"})
    assert result.returncode == 1
    assert "error: the server refuses the connection with status 401\n" in result.stderr
    assert f"  at: {server.url}/v3.5/chat\n  fix: check SPARK_API_KEY and SPARK_API_SECRET" in result.stderr
    for secret in (*KEYS.values(), "a-wrong-one", "authorization="):
        assert secret not in result.stderr + result.stdout
    assert server.asked.total() == 0
    assert not (tmp_path / "qa_data.json").exists()


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    lines_for(tmp_path, 40)
    with running(lambda question, time: "answer" if "第1" in question else "hang") as server:
        call = command(*extract(tmp_path, server), "--rate", 0)
        with subprocess.Popen(call, env=ENVIRONMENT | KEYS, stderr=subprocess.PIPE, text=True) as process:
            journal = tmp_path / "qa_data.json.partial"
            while server.at_once < 4 or (done := journal.read_bytes().count(b"\n") - 1) < 1:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            message = process.communicate(timeout=100)[1]
    assert process.returncode == 1
    assert f"{done} of 40 lines are kept in {journal}" in message
    assert message.endswith("error: stopped before the end (Ctrl-C or SIGTERM)\n")
    assert "Traceback" not in message


def test_a_key_is_in_no_process_list_and_no_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{name}={value}\n" for name, value in KEYS.items()))
    keys.chmod(0o600)
    lines_for(tmp_path, 3)
    with running(lambda question, time: "hang") as server:
        call = command(*extract(tmp_path, server), "--credentials", keys)
        with subprocess.Popen(call, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
            while server.at_once < 3:
                time.sleep(0.01)
            shown = (
                Path(f"/proc/{process.pid}/cmdline").read_bytes() + Path(f"/proc/{process.pid}/environ").read_bytes()
            )
            process.kill()
    assert SECRET.encode() not in shown
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path != keys)
    assert SECRET.encode() not in written and KEY.encode() not in written
    keys.chmod(0o644)
    result = run(*extract(tmp_path, server), "--credentials", keys)
    assert result.returncode == 2
    assert "others can read the credentials (mode 644)" in result.stderr


def test_what_a_teacher_needs_is_asked_for_before_anything_is_begun(tmp_path: Path) -> None:
    lines_for(tmp_path, 1)
    bare = run("persona", "extract", "--input", tmp_path / "output.txt")
    assert (bare.returncode, bare.stdout) == (2, "")
    assert "SPARK_APP_ID, SPARK_API_KEY and SPARK_API_SECRET are not set" in bare.stderr


def test_a_folder_is_no_place_for_answers(tmp_path: Path) -> None:
    lines_for(tmp_path, 1)
    openai = ("--teacher", "openai", "--base-url", "http://127.0.0.1:9/v1", "--model", "x")
    result = run("persona", "extract", "--input", tmp_path / "output.txt", "--output", tmp_path, "--force", *openai)
    assert result.returncode == 2 and "the output is a folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["output.txt"]
