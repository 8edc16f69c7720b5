"""Guesses of a text's next tokens, for a step to check several at once.

What followed the last time that the text's last three tokens came is guessed to follow again ("prompt lookup decoding",
Saxena, 2023). Guesses cost rows of a step, so they become longer where they are right and rarer where they are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

_LENGTH = 3  # tokens that must be the same
_FIRST = 2  # guesses at first, and after a wrong one
_LONGEST_PAUSE = 64  # steps without a guess, after many wrong ones


class Drafts:
    """The guesses of one text, at most `most` at once."""

    def __init__(self, prompt: Sequence[int], most: int) -> None:
        self._most = most
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # some tokens -> the place behind their last occurrence
        self._length = min(_FIRST, most)
        self._pause = self._waits = 0  # steps
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """The text's next token is known."""
        if len(self._tokens) >= _LENGTH:
            self._after[tuple(self._tokens[-_LENGTH:])] = len(self._tokens)
        self._tokens.append(token)

    def guess(self, room: int) -> list[int]:
        """Up to `room` tokens that may follow; call `judge` with what became of them. None may be guessed."""
        if self._waits:
            self._waits -= 1
            return []
        start = self._after.get(tuple(self._tokens[-_LENGTH:]))
        if start is None:
            return []
        period = len(self._tokens) - start  # at the end of what is known it goes on from the start
        return [self._tokens[start + at % period] for at in range(min(self._length, room))]

    def judge(self, guessed: int, right: int) -> None:
        """Of so many guesses the first `right` were."""
        if right == guessed:
            self._length, self._pause = min(2 * self._length, self._most), 0
        elif right == 0:
            self._length, self._pause = min(_FIRST, self._most), min(2 * self._pause + 1, _LONGEST_PAUSE)
            self._waits = self._pause
        else:
            self._length, self._pause = min(max(right + 1, _FIRST), self._most), 0
