"""What `extract` asks: a model behind a protocol, and the three ways in which it does not answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

Message = dict[str, str]  # role, content


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a teacher draws its answers; `max_tokens` is the longest."""

    temperature: float = 0.5
    max_tokens: int = 2048


class Teacher(Protocol):
    """A model that answers one conversation at a time, or several at once."""

    where: str  # its address, for messages
    identity: str  # what decides its answers

    def ask(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """Yield the answer piece by piece. Raises a TeacherError, and nothing else, when there is no whole answer."""


class TeacherError(Exception):
    """No whole answer came. `code` is the teacher's number for the reason."""

    def __init__(self, what: str, code: int | None = None) -> None:
        super().__init__(what if code is None else f"{what} (code {code})")
        self.code = code


class TryAgain(TeacherError):
    """The same question may get an answer later; not before `after` seconds, where the teacher says so."""

    def __init__(self, what: str, code: int | None = None, *, after: float = 0) -> None:
        super().__init__(what, code)
        self.after = after


class StopAsking(TeacherError):
    """No question will get an answer: the credentials are refused, the quota is used up. `fix` says what to do."""

    def __init__(self, what: str, code: int | None = None, *, fix: str) -> None:
        super().__init__(what, code)
        self.fix = fix


class NoAnswer(TeacherError):
    """This question will never get one: its content is refused, it is too long."""
