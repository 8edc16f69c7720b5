"""Who sits where: texts come to the seats of a decoder and leave them, and move so that few graph calls serve all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark13b.infer.decoding import READING, Decoding
from spark13b.infer.held import HeldTexts

_WORTH = 16  # tokens that a prompt and a text must have in common: every prompt begins with some of the template


class Seating:
    """The seats of one decoder. A text's seat may change; ask `seat_of` before each step.

    Prompts are read in the reading seat, and a text that is alone stays there: its steps are those of one text. With
    company it moves into a batch. Seats keep their texts until others need them, so that a prompt can go on from one;
    with `reuse` those that were there last stay longest.
    """

    def __init__(self, decoder: Decoding, reuse: bool = False) -> None:
        self.decoder, self._reuse = decoder, reuse
        self._seats: dict[object, int] = {}
        self._held = HeldTexts(decoder.slots)

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def free(self) -> int:
        """Texts that may still come. All seats but the reading one serve, or that alone when there is no other."""
        return max(self.decoder.seats, 1) - len(self._seats)

    def seat_of(self, text: object) -> int:
        """Where a text sits."""
        return self._seats[text]

    def read(self, part: Sequence[int], start: int) -> np.ndarray:
        """Read a part of a prompt at position `start` in the reading seat -> logits (V,) after it."""
        self._held.expect(READING, len(part), start)
        logits = self.decoder.read(part, start)
        self._held.write(READING, part, start)
        return logits

    def step(self, seats: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """Append a token to the text of each seat, at its position -> logits (len(seats), V) after each."""
        for seat, position in zip(seats, positions, strict=True):
            self._held.expect(seat, 1, position)
        logits = self.decoder.step(seats, tokens, positions)
        for seat, token, position in zip(seats, tokens, positions, strict=True):
            self._held.write(seat, [token], position)
        return logits

    def resume(self, prompt: Sequence[int]) -> int:
        """Bring a text that begins like `prompt` to the reading seat, which is free -> how many tokens of it are there.

        The text that the reading seat held moves to a free seat, if there is one and much of it would be lost.
        """
        common, best = self._most_shared(prompt)
        free = [seat for seat in self._free_seats() if seat != best]
        if free and self._held.lost(READING, common if best == READING else 0) >= _WORTH:
            self._copy(READING, self._held.least_missed(reversed(free)))
        if best != READING:
            self._copy(best, READING)
        return common

    def clear_reading(self, prompt: Sequence[int] = ()) -> None:
        """Make the reading seat free for a prompt, and spare the seat that it can go on from, if there is another."""
        for text, seat in self._seats.items():
            if seat == READING:
                self._move(text, self._free_seat(prompt))
                return

    def come(self, text: object, alone: bool) -> None:
        """Seat the text whose prompt was read; `alone` when no other is about to come."""
        self._seats[text] = READING
        if self.decoder.seats and not (alone and len(self._seats) == 1):
            self.clear_reading()

    def fork(self, text: object, parent: object) -> None:
        """Seat `text` as a copy of `parent`."""
        seat = self._free_seat()
        self._copy(self._seats[parent], seat)
        self._seats[text] = seat

    def become(self, text: object, parent: object) -> None:
        """Let `text`, which is seated, go on as a copy of `parent`."""
        self._copy(self._seats[parent], self._seats[text])

    def leave(self, text: object) -> None:
        """Free the seat of a text, if it has one."""
        self._seats.pop(text, None)

    def gather(self) -> None:
        """Bring the last text back to the reading seat, when no other is about to come."""
        if len(self._seats) == 1:
            (text,) = self._seats
            if self._seats[text] != READING:
                self._move(text, READING)

    def _move(self, text: object, seat: int) -> None:
        self._copy(self._seats[text], seat)
        self._seats[text] = seat

    def _copy(self, source: int, target: int) -> None:
        self._held.expect(target, 0, 0)
        self.decoder.copy(source, target)
        self._held.copy(source, target)

    def _most_shared(self, prompt: Sequence[int]) -> tuple[int, int]:
        """How many tokens of `prompt` the text of a seat begins with, if it is worth it, and the seat."""
        seats = [READING, *range(1, self.decoder.seats + 1)]
        common, best = max(((self._held.shared(seat, prompt), seat) for seat in seats), key=lambda pair: pair[0])
        return (common, best) if common >= _WORTH else (0, READING)

    def _free_seat(self, prompt: Sequence[int] = ()) -> int:
        free = self._free_seats()  # low ones, so that few batches have texts
        if not self._reuse:
            return free[0]
        spared = self._most_shared(prompt)[1]
        free = [seat for seat in free if seat != spared] or free
        batches = [(seat - 1) // self.decoder.batch for seat in free]
        return self._held.least_missed(seat for seat, batch in zip(free, batches, strict=True) if batch == batches[0])

    def _free_seats(self) -> list[int]:
        """Of those beside the reading one."""
        taken = set(self._seats.values())
        return [seat for seat in range(1, self.decoder.seats + 1) if seat not in taken]
