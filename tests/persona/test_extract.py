"""`extract`: every line ends in exactly one of two files, and is asked no more than it has to be."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from spark13b.data.fields import question_and_answer
from spark13b.data.records import read_records
from spark13b.errors import InputError, JobError
from spark13b.persona.asking import Pace
from spark13b.persona.extract import Extraction, extract
from spark13b.persona.frame import frame
from spark13b.persona.teacher import Message, NoAnswer, StopAsking, TryAgain

FAST = Pace(at_once=4, per_second=None, tries=3, pause=0.001)
PERSONA = {"姓名": "小雅"}


class Scripted:
    """A teacher that does with a question what `play` says: a text is the answer, an error is raised."""

    where, identity = "here", "scripted"

    def __init__(
        self, play: Callable[[str, int], str | Exception] = lambda question, time: f"答{question}", together: int = 0
    ) -> None:
        """No question is answered before so many were asked `together`."""
        self.play, self.together, self.asked = play, together, Counter[str]()
        self.under_way = self.most = 0

    async def ask(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        question = messages[-1]["content"].partition("##用户:{")[2].partition("}")[0]
        self.asked[question] += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0.002)
            while self.most < self.together:
                await asyncio.sleep(0.002)
            deed = self.play(question, self.asked[question])
            if isinstance(deed, Exception):
                raise deed
            for sign in deed:
                yield sign
        finally:
            self.under_way -= 1


class Job:
    """Files of one extraction in a folder."""

    def __init__(self, folder: Path, questions: Sequence[str]) -> None:
        self.input, self.output = folder / "output.txt", folder / "qa_data.json"
        self.errors, self.journal = folder / "data_exception.json", folder / "qa_data.json.partial"
        lines = [frame(PERSONA, question, "参考") + "\n" for question in questions]
        self.input.write_text("".join(lines), encoding="utf-8")

    def run(self, teacher: Any, pace: Pace = FAST, **options: Any) -> Extraction:
        return extract(self.input, self.output, self.errors, teacher, pace, **options)

    def answers(self) -> list[dict[str, Any]]:
        return records(self.output)

    def failures(self) -> list[dict[str, Any]]:
        return records(self.errors)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_stand_in_the_order_of_the_lines_and_are_ready_for_training(tmp_path: Path) -> None:
    job = Job(tmp_path, ["问一", "问\n二", "用户：问三"])
    teacher = Scripted()
    assert job.run(teacher) == Extraction(3, 3, {}, kept=0, again=0)
    assert job.answers() == [
        {"input": "问一", "output": "答问一"},
        {"input": "问\n二", "output": "答问<ret>二"},
        {"input": "问三", "output": "答用户：问三"},
    ]
    assert job.failures() == []
    pairs = [question_and_answer(record) for record in read_records(job.output)]
    assert pairs[1] == ("问<ret>二", "答问<ret>二")
    assert not job.journal.exists()


def test_so_many_questions_are_asked_at_once_and_no_more(tmp_path: Path) -> None:
    job, teacher = Job(tmp_path, [str(number) for number in range(20)]), Scripted(together=5)
    job.run(teacher, Pace(5, None))
    assert teacher.most == 5


def test_the_rate_limit_counts_every_try(tmp_path: Path) -> None:
    job = Job(tmp_path, [str(number) for number in range(6)])
    teacher = Scripted(lambda question, time: TryAgain("busy") if time == 1 else "x")
    start = time.monotonic()
    job.run(teacher, Pace(6, 50, 2, 0.001))
    assert time.monotonic() - start >= 11 / 50


def test_what_fails_is_asked_again_and_what_is_refused_is_not(tmp_path: Path) -> None:
    def play(question: str, time: int) -> str | Exception:
        if question == "refused":
            return NoAnswer("the content is refused", 10013)
        if question == "empty":
            return "回答:{ }"
        return TryAgain("busy", 11202) if time < {"once": 2, "never": 9}.get(question, 0) else "fine"

    job = Job(tmp_path, ["good", "once", "refused", "never", "empty"])
    teacher = Scripted(play)
    result = job.run(teacher)
    assert teacher.asked == {"good": 1, "once": 2, "refused": 1, "never": 3, "empty": 3}
    assert [one["input"] for one in job.answers()] == ["good", "once"]
    found = [{name: value for name, value in one.items() if name != "data"} for one in job.failures()]
    assert found == [
        {"line": 3, "input": "refused", "error": "the content is refused (code 10013)", "tries": 1, "code": 10013},
        {"line": 4, "input": "never", "error": "busy (code 11202)", "tries": 3, "code": 11202},
        {"line": 5, "input": "empty", "error": "the answer is empty", "tries": 3},
    ]
    assert (result.answered, result.failed, result.again) == (2, 3, 5)


def test_failures_are_an_input_again(tmp_path: Path) -> None:
    job = Job(tmp_path, ["a", "b"])
    job.run(Scripted(lambda question, time: NoAnswer("no") if question == "b" else "x"))
    second = Scripted()
    extract(job.errors, tmp_path / "more.json", tmp_path / "left.json", second, FAST)
    assert second.asked == {"b": 1}
    assert records(tmp_path / "more.json") == [{"input": "b", "output": "答b"}]


def test_a_line_that_is_no_line_is_not_asked_and_not_lost(tmp_path: Path) -> None:
    job = Job(tmp_path, ["a"])
    job.input.write_text(job.input.read_text(encoding="utf-8") + "\n你好\n", encoding="utf-8")
    teacher = Scripted()
    job.run(teacher)
    assert teacher.asked == {"a": 1}
    assert job.failures() == [{"line": 3, "error": "this is no line of 'persona concat'", "data": "你好"}]


def test_refused_credentials_stop_at_once_and_keep_what_is_done(tmp_path: Path) -> None:
    def play(question: str, time: int) -> str | Exception:
        return StopAsking("no right", 11200, fix="pay") if question == "5" else "x"

    job = Job(tmp_path, [str(number) for number in range(300)])
    teacher = Scripted(play)
    with pytest.raises(JobError, match="no right") as raised:
        job.run(teacher)
    assert raised.value.fix == "pay"
    assert teacher.asked.total() < 6 + 2 * 4  # others are under way when the sixth is refused
    assert not job.output.exists()
    second = Scripted()
    result = job.run(second)
    assert result.kept >= 4
    assert second.asked.total() == 300 - result.kept
    assert len(job.answers()) == 300


def test_a_teacher_that_answers_nobody_is_given_up_and_its_lines_are_asked_again_later(tmp_path: Path) -> None:
    job = Job(tmp_path, [str(number) for number in range(100)])
    dead = Scripted(lambda question, time: "x" if int(question) < 10 else TryAgain("the connection failed"))
    with pytest.raises(JobError, match="8 lines in a row, 3 tries each"):
        job.run(dead)
    assert len(dead.asked) < 30
    second = Scripted()
    assert job.run(second).kept == 10
    assert set(second.asked) == {str(number) for number in range(10, 100)}


def test_other_lines_or_another_model_do_not_continue_what_was_begun(tmp_path: Path) -> None:
    job = Job(tmp_path, ["a", "b", "c"])
    with pytest.raises(JobError):
        job.run(Scripted(lambda question, time: StopAsking("no", fix="-") if question == "c" else "x"), Pace(1, None))
    other = Scripted()
    other.identity = "another"
    with pytest.raises(InputError, match="answers to other prompts"):
        job.run(other)
    job.run(other, force=True)
    assert other.asked.total() == 3


def test_outputs_that_are_there_are_replaced_only_by_force(tmp_path: Path) -> None:
    job = Job(tmp_path, ["a"])
    job.run(Scripted())
    before = job.output.read_bytes()
    teacher = Scripted(lambda question, time: "new")
    with pytest.raises(InputError, match="already exists"):
        job.run(teacher)
    assert (teacher.asked.total(), job.output.read_bytes(), job.journal.exists()) == (0, before, False)
    job.run(teacher, force=True)
    assert job.answers() == [{"input": "a", "output": "new"}]


def test_an_end_between_the_two_files_loses_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import spark13b.persona.extract as module

    write = module._write

    def ended(target: Path, lines: Any) -> None:
        if target == job.output:
            raise KeyboardInterrupt
        write(target, lines)

    job = Job(tmp_path, ["a", "b"])
    monkeypatch.setattr(module, "_write", ended)
    with pytest.raises(KeyboardInterrupt):
        job.run(Scripted(lambda question, time: NoAnswer("no") if question == "b" else "x"))
    assert job.errors.exists() and not job.output.exists()
    monkeypatch.undo()
    second = Scripted()
    job.run(second)
    assert second.asked.total() == 0
    assert (len(job.answers()), len(job.failures())) == (1, 1)


def test_a_character_in_two_halves_is_put_together(tmp_path: Path) -> None:
    job = Job(tmp_path, ["a"])
    job.run(Scripted(lambda question, time: "\ud83d\ude00"))
    assert job.answers() == [{"input": "a", "output": "😀"}]


@pytest.mark.parametrize(
    ("data", "what"),
    [(b"", "no line of"), ("你好\n".encode(), "no line of"), (b"\xff\n", "not UTF-8")],
    ids=["empty", "other", "bytes"],
)
def test_a_file_that_is_none_is_refused_before_anything_is_asked(tmp_path: Path, data: bytes, what: str) -> None:
    job = Job(tmp_path, ["a"])
    job.input.write_bytes(data)
    teacher = Scripted()
    with pytest.raises(InputError, match=what):
        job.run(teacher)
    assert teacher.asked.total() == 0


@pytest.mark.parametrize(("output", "errors"), [("output.txt", "e"), ("a", "output.txt"), ("a", "./a")])
def test_three_files_are_three_files(tmp_path: Path, output: str, errors: str) -> None:
    job = Job(tmp_path, ["a"])
    with pytest.raises(InputError, match="not three files"):
        extract(job.input, tmp_path / output, tmp_path / errors, Scripted(), FAST, force=True)
