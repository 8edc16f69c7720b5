"""`spark13b chat` on a terminal and in a pipe, with a small model."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infer.small_run import write_small_run
from spark13b.errors import InputError
from spark13b.infer.conversation import Turn, conversation_ids
from spark13b.infer.requests import Piece, Request

ENVIRONMENT = {**os.environ, "COLUMNS": "60", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("chat") / "run", model__num_layers=1, model__seq_length=100000)


class Terminal:
    """A process on a terminal."""

    def __init__(self, *command: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=ENVIRONMENT,
            start_new_session=True,
            close_fds=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self.seen = ""

    def write(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait_for(self, pattern: str) -> str:
        """What came up to the pattern."""
        until = time.monotonic() + 150
        while not (found := re.search(pattern, self.seen)):
            assert select.select([self.ours], [], [], until - time.monotonic())[0], self.seen
            try:
                self.seen += os.read(self.ours, 4096).decode(errors="replace").replace("\r\n", "\n")
            except OSError:
                break
        found = found or re.search(pattern, self.seen)
        assert found, self.seen
        passed, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return passed


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture(scope="module")
def terminal(model: Path) -> Iterator[Terminal]:
    options = ("--load", str(model), "--max-new-tokens", "12")
    terminal = Terminal(sys.executable, "-m", "spark13b", "chat", *options)
    terminal.wait_for("\n> $")
    yield terminal
    terminal.process.kill()
    terminal.process.wait()


def say(terminal: Terminal, text: str) -> str:
    """What is answered."""
    terminal.write(text + "\n")
    return terminal.wait_for(r"\n> $").partition("\n")[2].removesuffix("\n> ").strip()


def test_a_conversation_remembers_forgets_and_is_saved(terminal: Terminal, tmp_path: Path) -> None:
    first = say(terminal, "hello")
    second = say(terminal, "hello")
    assert first and second and first != second  # the second question has the first one before it
    assert say(terminal, "/undo") == "Taken back."
    assert say(terminal, "hello") == second
    assert say(terminal, "/retry") == second
    path = tmp_path / "talk.jsonl"
    assert "".join(say(terminal, f"/save {path}").split()) == f"4turnsarein{path}"  # folded at 60 columns
    turns = [("user", "hello"), ("assistant", first), ("user", "hello"), ("assistant", second)]
    saved = json.loads(path.read_text())["messages"]
    assert [(turn["role"], turn["content"].strip()) for turn in saved] == turns
    assert "the file exists already" in say(terminal, f"/save {path}")
    assert say(terminal, "/reset") == "The conversation is forgotten."
    assert say(terminal, "hello") == first
    say(terminal, "/reset")
    say(terminal, "/system be short")
    assert say(terminal, "hello") != first
    say(terminal, "/system")
    assert "/help shows what there is" in say(terminal, "/what")
    assert "/undo" in say(terminal, "/help")


def test_several_lines_are_one_question(terminal: Terminal, tmp_path: Path) -> None:
    say(terminal, "/reset")
    terminal.write('"""\na\nb\n"""\n')
    terminal.wait_for(r"\n> $")
    terminal.write("c \\\nd\n")
    terminal.wait_for(r"\n> $")
    say(terminal, f"/save {tmp_path / 'talk.jsonl'}")
    saved = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [turn["content"] for turn in saved if turn["role"] == "user"] == ["a\nb", "c \nd"]


def test_ctrl_c_stops_an_answer_and_keeps_what_there_is_and_ctrl_d_leaves(model: Path) -> None:
    terminal = Terminal(*(sys.executable, "-m", "spark13b", "chat", "--load", str(model), "--max-new-tokens", "90000"))
    terminal.wait_for("\n> $")
    terminal.write("hello\n")
    terminal.wait_for(r"\n\S+")
    terminal.write("\x03")
    assert terminal.wait_for(r"\n> $").rstrip("\n> ").endswith("…")
    terminal.write("not asked\x03")
    terminal.wait_for("Ctrl-D ends the conversation")
    terminal.wait_for(r"\n> $")
    terminal.write("\x04")
    assert terminal.process.wait(100) == 0


def test_sigterm_ends_a_conversation_that_waits(model: Path) -> None:
    terminal = Terminal(sys.executable, "-m", "spark13b", "chat", "--load", str(model))
    terminal.wait_for("\n> $")
    terminal.process.terminate()
    assert terminal.process.wait(100) == 0


def test_in_a_pipe_answers_alone_go_to_stdout(model: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "spark13b", "chat", "--load", str(model), "--max-new-tokens", "4"],
        input="hello\n/reset\nhello\n",
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    first, second = result.stdout.splitlines()
    assert first == second
    assert "forgotten" in result.stderr


def test_in_a_pipe_what_cannot_be_answered_is_told_and_the_rest_is_answered(model: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "spark13b", "chat", "--load", str(model), "--max-new-tokens", "4"],
        input=b'\xef\xbb\xbf/reset\r\n/system \xff\na\xff\nhello\n/reset\n"""\nhello',  # the last question has no end
        capture_output=True,
        env=ENVIRONMENT,
    )
    assert result.returncode == 2
    assert result.stderr.count(b"error: byte 0xff is not UTF-8") == 2
    nothing, first, second = result.stdout.decode().splitlines()
    assert nothing == "" and first == second


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        ("/save {}/talk.jsonl", (), "error: there is nothing to save yet"),
        ("hello", ("--set", "machine.devices=2", "--set", "parallel.model_parallel=2"), "page of 'spark13b serve'"),
        ("hello", ("--system", b"\xff"), "byte 0xff is not UTF-8\n  at: --system"),
    ],
)
def test_what_cannot_be_done_is_told_with_exit_code_2(
    given: str, options: tuple[str | bytes, ...], says: str, model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "spark13b", "chat", "--load", str(model), *options]
    given = given.format(tmp_path)
    result = subprocess.run(command, input=given, capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stdout) == (2, "") and says in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_answer_that_is_asked_for_again_is_another_draw_and_the_same_one_with_the_seed(model: Path) -> None:
    from spark13b.infer.chat import Chat
    from spark13b.infer.session import Session, find_model

    options = {"generation.do_sample": True, "generation.max_new_tokens": 8}
    session = Session(find_model(model, None, None, options, ()))

    def answers() -> list[str]:
        chat, found = Chat(session), []
        for _ in range(3):
            found.append("".join(chat.ask("hello")))
            chat.undo()
        return found

    assert len(set(answers())) == 3
    assert answers() == answers()


def test_the_oldest_turns_go_when_the_context_is_full(tmp_path: Path) -> None:
    from spark13b.infer.chat import Chat
    from spark13b.infer.session import Session, find_model

    run = write_small_run(tmp_path / "run", model__num_layers=1, model__seq_length=64, generation__max_new_tokens=8)
    session = Session(find_model(run, None, None, {}, ()))
    chat = Chat(session, system="s")
    for number in range(8):
        "".join(chat.ask(f"question {number}"))
    assert chat.dropped > 0
    assert len(chat.turns) == 16  # nothing is forgotten, the model only sees less
    with pytest.raises(InputError, match="there is room for 56"):
        "".join(chat.ask("天气" * 100))
    assert len(chat.turns) == 16


def test_a_full_context_is_freed_by_a_quarter_so_that_the_next_prompts_begin_as_the_last(tmp_path: Path) -> None:
    from spark13b.infer.chat import Chat
    from spark13b.infer.session import Session, find_model

    run = write_small_run(tmp_path / "run", model__num_layers=1, model__seq_length=256, generation__max_new_tokens=4)
    session = Session(find_model(run, None, None, {}, ()), reuse=True)
    chat, prompts = Chat(session, system="s"), []
    run_requests = session.run

    def watched(requests: list[Request]) -> Iterator[tuple[int, Piece]]:
        prompts.extend(list(request.prompt) for request in requests)
        return run_requests(requests)

    session.run = watched  # type: ignore[method-assign]
    for number in range(40):
        "".join(chat.ask(f"question {number}"))
    anew = [number for number in range(1, 40) if prompts[number][: len(prompts[number - 1])] != prompts[number - 1]]
    room = 256 - 4
    assert 2 <= len(anew) <= 8  # where the context was full
    assert all(room * 0.6 < len(prompts[number]) <= room * 0.75 for number in anew)
    assert all(len(ids) <= room for ids in prompts)
    while chat.turns:
        chat.undo()
    "".join(chat.ask("question 0"))
    assert prompts[-1] == prompts[0]


def test_an_answers_tokens_are_followed_by_the_next_question() -> None:
    from infer.small_run import TOKENIZER
    from spark13b.data.tokenizer import SparkTokenizer

    tokenizer = SparkTokenizer.load(TOKENIZER)
    ids = conversation_ids(
        tokenizer, "<User> {}<end><Bot> ", [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")]
    )
    assert ids == tokenizer.encode("<User> a<end><Bot> b<end><User> c<end><Bot> ")
