"""What the caches of a decoder's seats hold: the tokens of the texts that were read there last, running or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile


class HeldTexts:
    """The texts in the rings of `slots` slots, by seat. A text of T tokens lies there with its last `slots` ones."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._tokens: dict[int, list[int]] = {}
        self._sure: dict[int, int] = {}  # of a seat that is being written to: its first tokens that stay
        self._used: dict[int, int] = {}  # when a seat was written to last
        self._clock = 0

    def expect(self, seat: int, count: int, position: int) -> None:
        """`count` tokens are about to be written from `position` on: an error or Ctrl-C may come before `write`."""
        kept = position if position + count <= self._slots else 0
        self._sure[seat] = min(kept, self._sure.get(seat, kept))

    def write(self, seat: int, tokens: Sequence[int], position: int) -> None:
        """`tokens` were written from `position` on; what stood there, and behind, is no part of the text any more."""
        self._touch(seat)
        self._tokens.setdefault(seat, [])[position:] = tokens
        self._sure.pop(seat, None)

    def copy(self, source: int, target: int) -> None:
        """`target`, of which nothing was expected to stay, holds what `source` holds."""
        self._touch(target)
        self._tokens[target] = list(self._text(source))
        self._sure.pop(target, None)

    def lost(self, seat: int, kept: int) -> int:
        """Tokens that no seat would hold any more if this one kept only the first `kept`."""
        text = self._text(seat)
        others = [one for one in map(self._text, self._tokens.keys() - {seat}) if len(one) < self._slots]
        return 0 if any(other[: len(text)] == text for other in others) else len(text) - kept

    def shared(self, seat: int, prompt: Sequence[int]) -> int:
        """How many tokens of `prompt`, at most all but the last, need not be read where a seat's text is.

        A text that fills its ring has lost its first tokens, or loses them while others grow: see `Decoding.step`. It
        can only go on at its own end.
        """
        text = self._text(seat)
        pairs = zip(text, prompt[:-1], strict=False)
        alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return alike if alike == len(text) or len(text) < self._slots else 0

    def least_missed(self, seats: Iterable[int]) -> int:
        """The first of `seats` whose text is not there or elsewhere, too; else the one that was used longest ago."""
        return min(seats, key=lambda seat: self._used[seat] if self.lost(seat, 0) else 0)

    def _text(self, seat: int) -> list[int]:
        text = self._tokens.get(seat, [])
        return text[: self._sure[seat]] if seat in self._sure else text

    def _touch(self, seat: int) -> None:
        self._clock += 1
        self._used[seat] = self._clock
