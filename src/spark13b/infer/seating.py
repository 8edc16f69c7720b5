"""Who sits where: texts come to the seats of a decoder and leave them, and move so that few graph calls serve all."""

from __future__ import annotations

from spark13b.infer.decoding import READING, Decoding


class Seating:
    """The seats of one decoder. A text's seat may change; ask `seat_of` before each step.

    Prompts are read in the reading seat, and a text that is alone stays there: its steps are those of one text. With
    company it moves into a batch.
    """

    def __init__(self, decoder: Decoding) -> None:
        self.decoder = decoder
        self._seats: dict[object, int] = {}

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def free(self) -> int:
        """Texts that may still come. All seats but the reading one serve, or that alone when there is no other."""
        return max(self.decoder.seats, 1) - len(self._seats)

    def seat_of(self, text: object) -> int:
        """Where a text sits."""
        return self._seats[text]

    def clear_reading(self) -> None:
        """Make the reading seat free for a prompt."""
        for text, seat in self._seats.items():
            if seat == READING:
                self._move(text, self._free_seat())
                return

    def come(self, text: object, alone: bool) -> None:
        """Seat the text whose prompt was read; `alone` when no other is about to come."""
        self._seats[text] = READING
        if self.decoder.seats and not (alone and len(self._seats) == 1):
            self.clear_reading()

    def fork(self, text: object, parent: object) -> None:
        """Seat `text` as a copy of `parent`."""
        seat = self._free_seat()
        self.decoder.copy(self._seats[parent], seat)
        self._seats[text] = seat

    def become(self, text: object, parent: object) -> None:
        """Let `text`, which is seated, go on as a copy of `parent`."""
        self.decoder.copy(self._seats[parent], self._seats[text])

    def leave(self, text: object) -> None:
        """Free the seat of a text."""
        del self._seats[text]

    def gather(self) -> None:
        """Bring the last text back to the reading seat, when no other is about to come."""
        if len(self._seats) == 1:
            (text,) = self._seats
            if self._seats[text] != READING:
                self._move(text, READING)

    def _move(self, text: object, seat: int) -> None:
        self.decoder.copy(self._seats[text], seat)
        self._seats[text] = seat

    def _free_seat(self) -> int:
        taken = set(self._seats.values())
        return next(seat for seat in range(1, self.decoder.seats + 1) if seat not in taken)
