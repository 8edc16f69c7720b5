"""What the engine needs of what computes: a decoder, whichever it is.

A decoder holds the caches of texts in seats. Seat 0 is where prompts are read, part by part; a text that is alone stays
there. The others are for texts that grow together; a text moves between seats by a copy of its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

READING = 0  # the seat where prompts are read


class Decoding(Protocol):
    """A decoder of `slots` slots for seat 0 and each of `seats` more."""

    @property
    def slots(self) -> int:
        """Tokens that a seat's ring holds: they bound a text, unless they are the whole window."""

    @property
    def seats(self) -> int:
        """Seats beside the reading one."""

    @property
    def batch(self) -> int:
        """Seats from 1 on that grow in one call; so many more grow in another."""

    @property
    def checks_drafts(self) -> bool:
        """Whether several tokens of a text, one position after the other within its ring, may be in one step."""

    @property
    def graphs(self) -> int:
        """How many graphs there are; a call that adds one compiled it."""

    def read(self, ids: Sequence[int], start: int) -> np.ndarray:
        """Read a part of a prompt at position `start` in seat 0 -> logits (V,) float32 after it; at 0 a text begins."""

    def step(self, seats: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """Append a token to the text of each seat, at its position -> logits (len(seats), V) float32 after each.

        Other seats keep their texts; what would come next in their rings may be written over.
        """

    def copy(self, source: int, target: int) -> None:
        """Let seat `target` hold what seat `source` holds."""
