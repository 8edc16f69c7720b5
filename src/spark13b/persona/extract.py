"""Have a teacher answer every line of output.txt: training data of a persona, ready for `preprocess sft`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.data.place import Place, not_utf8
from spark13b.errors import InputError
from spark13b.files import check_writable_file, refuse_folder, replacing
from spark13b.journal import Journal
from spark13b.persona.asking import Outcome, Pace, ask_all
from spark13b.persona.frame import plain_question, unframe
from spark13b.persona.teacher import Teacher
from spark13b.progress import SILENT, Meter, Progress

_NO_FRAME = "this is no line of 'persona concat'"
_ALL_THERE = -1  # in the journal: every line has its outcome, the files are being written


@dataclass(frozen=True, slots=True)
class Line:
    """A line of output.txt: its number in the file, counted from 1, and the user's question; None without a frame."""

    number: int
    text: str
    question: str | None


@dataclass(frozen=True, slots=True)
class Extraction:
    """What came of all lines: `failures` counts reasons, `kept` the lines done before, `again` the repeated tries."""

    lines: int
    answered: int
    failures: dict[str, int]
    kept: int
    again: int

    @property
    def failed(self) -> int:
        """Lines without an answer."""
        return self.lines - self.answered


def extract(
    input: Path,
    output: Path,
    errors: Path,
    teacher: Teacher,
    pace: Pace | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> Extraction:
    """Ask the teacher every line; `{"input", "output"}` of those answered goes to `output`, the others to `errors`.

    Both are written when all is done, in the order of the lines. Until then outcomes are kept in OUTPUT.partial: after
    any end of the process the same call goes on, and asks nothing that has an answer, or was refused, again. Raises
    InputError for files that cannot be read or written, JobError when the teacher refuses to answer at all.
    """
    lines = read_lines(input)
    if len({path.resolve() for path in (input, output, errors)}) < 3:
        raise InputError(
            "input, answers and errors are not three files", where=input, fix="give --output and --errors other names"
        )
    for target in (output, errors):
        refuse_folder(target)
    output.parent.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256("\n".join((teacher.identity, *(line.text for line in lines))).encode()).hexdigest()
    with Journal(output.with_name(output.name + ".partial"), identity, force=force) as journal:
        if _ALL_THERE not in journal:
            for target in (output, errors):
                check_writable_file(target, force=force)
        work = _Work(lines, journal, progress)
        work.run(teacher, pace or Pace())
        journal.add(_ALL_THERE, None)
        _write(errors, (_failure(line, record) for line, record in work.outcomes() if "error" in record))
        _write(output, (_sample(line, record) for line, record in work.outcomes() if "answer" in record))
        result = work.result()
        journal.remove()
    return result


def read_lines(path: Path) -> list[Line]:
    """The lines to ask, blank ones left out; those of data_exception.json, too, whose `data` they are.

    Raises InputError when the file cannot be read, or holds none.
    """
    if not path.is_file():
        raise InputError("there is no such file", where=path, fix="check --input; 'spark13b persona concat' makes it")
    lines = []
    for number, raw in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = raw.decode().strip("\r")
        except UnicodeDecodeError as error:
            raise not_utf8(Place(path, number), raw, error.start) from None
        if text.strip():
            text = _data_of(text)
            example = unframe(text)
            lines.append(Line(number, text, None if example is None else plain_question(example.question) or None))
    if all(line.question is None for line in lines):
        raise InputError("the file has no line of 'persona concat'", where=path, fix="give the file that it wrote")
    return lines


class _Work:
    """The lines and what has come of them: in the journal what is final, in memory what failed but may not again."""

    def __init__(self, lines: list[Line], journal: Journal, progress: Progress) -> None:
        self._lines, self._journal, self._progress = lines, journal, progress
        self._meter: Meter | None = None
        self._failed: dict[int, dict[str, Any]] = {}
        self._kept = sum(line.number in journal for line in lines)
        self._again = self._answers = self._refusals = 0

    def run(self, teacher: Teacher, pace: Pace) -> None:
        for line in self._lines:
            if line.question is None:
                self._failed[line.number] = {"error": _NO_FRAME}
        missing = [one for one in self._lines if one.number not in self._journal and one.number not in self._failed]
        if self._kept and missing:
            self._progress.note(f"{self._kept} lines are done by an earlier run, {len(missing)} are left")
        try:
            with self._progress.track("asking", len(self._lines), "lines") as self._meter:
                self._meter.advance(len(self._lines) - len(missing))
                ask_all(teacher, ((line.number, line.text) for line in missing), pace, self._done)
        except BaseException:
            if len(self._journal):
                done = f"{len(self._journal)} of {len(self._lines)} lines"
                self._progress.note(f"{done} are kept in {self._journal.path}; the same command goes on from there")
            raise
        for number, record in self._failed.items():
            self._journal.add(number, record)

    def outcomes(self) -> Iterable[tuple[Line, dict[str, Any]]]:
        return ((line, self._journal[line.number]) for line in self._lines)

    def result(self) -> Extraction:
        failures = Counter(record["error"] for _, record in self.outcomes() if "error" in record)
        answered = len(self._lines) - failures.total()
        return Extraction(len(self._lines), answered, dict(failures.most_common()), self._kept, self._again)

    def _done(self, number: int, outcome: Outcome) -> None:
        self._again += outcome.tries - 1
        if outcome.error is None:
            assert outcome.answer is not None
            self._journal.add(number, {"answer": outcome.answer})
            self._answers += 1
        else:
            record: dict[str, Any] = {"error": str(outcome.error), "tries": outcome.tries}
            if outcome.error.code is not None:
                record["code"] = outcome.error.code
            if outcome.final:
                self._journal.add(number, record)
                self._refusals += 1
            else:
                self._failed[number] = record
        if self._meter is not None:
            counts = {"answered": self._answers, "without_answer": self._refusals + len(self._failed)}
            self._meter.show(**{name: str(count) for name, count in counts.items()}, asked_again=str(self._again))
            self._meter.advance()


def _sample(line: Line, record: dict[str, Any]) -> dict[str, Any]:
    return {"input": line.question, "output": record["answer"]}


def _failure(line: Line, record: dict[str, Any]) -> dict[str, Any]:
    question = {} if line.question is None else {"input": line.question}
    return {"line": line.number, **question, **record, "data": line.text}


def _write(target: Path, records: Iterable[dict[str, Any]]) -> None:
    with replacing(target, force=True) as draft, draft.open("w", encoding="utf-8", newline="\n") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def _data_of(text: str) -> str:
    """The line inside a line of data_exception.json; others as they are."""
    if text.startswith("{"):
        try:
            data = json.loads(text)["data"]
        except (ValueError, KeyError):
            return text
        if isinstance(data, str):
            return data
    return text
