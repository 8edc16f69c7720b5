"""From tokens to the text of an answer: decoded as it is decided, cut before a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from spark13b.data.stream_decoder import StreamDecoder


class AnswerText:
    """Text of an answer whose tokens come one by one.

    Text that may still become a stop string is held back, so what was handed out never has to be taken back. Where the
    text is not watched yet (below `min_new_tokens`), nothing is held back, and no stop string begins there.
    """

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str] = ()) -> None:
        self._decoder, self._stops = decoder, [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False  # a stop string was found; nothing comes any more

    def push(self, token: int, watched: bool = True) -> str:
        """The text that `token` decides. Unless `watched`, a stop string that ends with it does not stop the answer."""
        return self._take(self._decoder.push(token), watched)

    def finish(self) -> str:
        """The rest: what was held back."""
        text = self._take(self._decoder.finish(), watched=True)
        if self.stopped:
            return text
        rest, self._held = text + self._held, ""
        return rest

    def _take(self, text: str, watched: bool) -> str:
        if self.stopped:
            return ""
        self._held += text
        if not watched:
            decided, self._held = self._held, ""
            return decided
        found = [place for place in map(self._held.find, self._stops) if place >= 0]
        if found:
            decided, self._held, self.stopped = self._held[: min(found)], "", True
            return decided
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        decided = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return decided


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
