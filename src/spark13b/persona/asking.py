"""Many questions to one teacher: several at once, not faster than it allows, and again where that may help."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass

from spark13b.errors import JobError
from spark13b.persona.frame import plain_answer
from spark13b.persona.teacher import NoAnswer, StopAsking, Teacher, TeacherError, TryAgain

_LONGEST_PAUSE = 60.0  # seconds
_LONGEST_ANSWER = 600.0  # seconds
_HOPELESS = 8  # lines in a row, or as many as are asked at once, that no try got an answer for


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard a teacher is pressed. `per_second` counts tries; `pause` is the first one, in seconds, and doubles."""

    at_once: int = 4
    per_second: float | None = 2
    tries: int = 6
    pause: float = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one question: an answer, or the error that there is none. `tries` is how often it was asked."""

    answer: str | None
    error: TeacherError | None
    tries: int

    @property
    def final(self) -> bool:
        """Whether the same question would get the same outcome another time."""
        return not isinstance(self.error, TryAgain)


def ask_all(
    teacher: Teacher, questions: Iterable[tuple[int, str]], pace: Pace, done: Callable[[int, Outcome], None]
) -> None:
    """Ask numbered questions; `done` is called with the number and the outcome of each, as soon as it is known.

    Raises JobError at once when the teacher will not answer at all, with the questions under way given up.
    """
    asyncio.run(_Asking(teacher, pace, done).all(questions))


class _Asking:
    def __init__(self, teacher: Teacher, pace: Pace, done: Callable[[int, Outcome], None]) -> None:
        self._teacher, self._pace, self._done = teacher, pace, done
        self._next_slot = 0.0
        self._in_vain = 0  # questions in a row

    async def all(self, questions: Iterable[tuple[int, str]]) -> None:
        waiting = iter(questions)
        workers = [asyncio.create_task(self._work(waiting)) for _ in range(self._pace.at_once)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, waiting: Iterable[tuple[int, str]]) -> None:
        for number, question in waiting:
            self._done(number, await self._outcome(question))
            if self._in_vain >= max(_HOPELESS, self._pace.at_once):
                raise JobError(
                    f"the teacher does not answer: {self._in_vain} lines in a row, {self._pace.tries} tries each",
                    where=self._teacher.where,
                    fix="look into the network and the service, then run the same command again",
                )

    async def _outcome(self, question: str) -> Outcome:
        pause = self._pace.pause
        for tries in range(1, self._pace.tries + 1):
            await self._slot()
            try:
                answer = await self._ask(question)
            except NoAnswer as error:
                return Outcome(None, error, tries)
            except StopAsking as error:
                raise JobError(str(error), where=self._teacher.where, fix=error.fix) from None
            except TryAgain as error:
                failure = error
            else:
                self._in_vain = 0
                return Outcome(answer, None, tries)
            if tries < self._pace.tries:
                # jitter: those that failed together do not come back together
                await asyncio.sleep(max(failure.after, pause * random.uniform(0.5, 1.5)))
                pause = min(2 * pause, _LONGEST_PAUSE)
        self._in_vain += 1
        return Outcome(None, failure, self._pace.tries)

    async def _ask(self, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        try:
            async with asyncio.timeout(_LONGEST_ANSWER), aclosing(self._teacher.ask(messages)) as pieces:
                answer = "".join([piece async for piece in pieces])
        except TimeoutError:
            raise TryAgain(f"the answer is not whole after {_LONGEST_ANSWER:g} s") from None
        # JSON may write the halves of a character in two pieces
        answer = plain_answer(answer.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        if not answer:
            raise TryAgain("the answer is empty")
        return answer

    async def _slot(self) -> None:
        """Wait until one more try is allowed."""
        if self._pace.per_second is None:
            return
        now = asyncio.get_running_loop().time()
        slot = max(now, self._next_slot)
        self._next_slot = slot + 1 / self._pace.per_second
        await asyncio.sleep(slot - now)
