"""A conversation with one model: turns, answers that stream, and what is done with them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from spark13b.errors import InputError
from spark13b.files import write_text
from spark13b.infer.conversation import Turn, fitting_ids
from spark13b.infer.prompts import check_utf8
from spark13b.infer.requests import Request
from spark13b.infer.session import Session

_SEEDS = 2**32
_ANSWER_ROOM = 4  # of the context at least this part is left for the answer, where that is less than the longest
_FREED = 4  # of the room this part is made free when it is full: until it is full again, prompts begin as the last did


class Chat:
    """The turns so far. `system` stands before the first question."""

    def __init__(self, session: Session, system: str = "") -> None:
        self._session = session
        self.system = system
        self.turns: list[Turn] = []
        self._asked = 0  # answers so far, those taken back too
        self._first = 0  # of the turns, the first that the model still sees
        self.dropped = 0  # of the oldest turns, the last answer did not see so many

    def ask(self, question: str) -> Iterator[str]:
        """The answer to a question, piece by piece; it becomes a turn, also when the caller leaves early.

        Raises InputError when the question alone is too long; it is no turn then.
        """
        check_utf8(question)
        asked = [*self.turns, Turn("user", question)]
        ids, kept = self._prompt(asked)
        self.dropped = len(asked) - len(kept)
        self.turns, said = asked, ""
        options = self._session.options  # an answer that is asked for again is another draw
        options = options.model_copy(update={"seed": (options.seed + self._asked) % _SEEDS})
        self._asked += 1
        try:
            for _, piece in self._session.run([Request(ids, options)]):
                said += piece.text
                if piece.text:
                    yield piece.text
        finally:
            self.turns.append(Turn("assistant", said))

    def undo(self) -> str | None:
        """Take back the last question and its answer -> the question, or None when there is none."""
        questions = [index for index, turn in enumerate(self.turns) if turn.role == "user"]
        if not questions:
            return None
        question = self.turns[questions[-1]].content
        del self.turns[questions[-1] :]
        if len(self.turns) <= self._first:
            self._first = 0
        return question

    def reset(self) -> None:
        """Forget all turns."""
        self.turns, self._first = [], 0

    def save(self, path: Path) -> None:
        """Write the conversation as a line of JSON, as instruction data. Raises InputError when the file exists."""
        turns = ([Turn("system", self.system)] if self.system else []) + self.turns
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        write_text(path, json.dumps({"messages": messages}, ensure_ascii=False) + "\n")

    def _prompt(self, turns: list[Turn]) -> tuple[list[int], list[Turn]]:
        """The ids of the newest turns that leave room for an answer, and those turns.

        What begins as the last prompt need not be read again. So where turns must go, more go at once than must.
        """
        context = self._session.model.config.seq_length
        room = context - min(self._session.options.max_new_tokens, context // _ANSWER_ROOM)
        system = [Turn("system", self.system)] if self.system else []
        template = self._session.options.prompt_template

        def fitting(room: int) -> tuple[list[int], list[Turn]]:
            ids, kept = fitting_ids(self._session.tokenizer, template, system + turns[self._first :], room)
            return ids, [turn for turn in kept if turn.role != "system"]

        try:
            ids, kept = fitting(room)
        except ValueError as error:
            raise InputError(str(error), fix="ask in fewer words, or use a model with a longer context") from None
        if len(kept) < len(turns) - self._first:
            with contextlib.suppress(ValueError):  # the question alone needs more
                ids, kept = fitting(room - room // _FREED)
            self._first = len(turns) - len(kept)
        return ids, kept
