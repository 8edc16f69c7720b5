"""Reading `[{...}, ...]` value by value, in memory bounded by the largest one, with the line of each."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from spark13b.data.place import Place, excerpt, not_utf8
from spark13b.errors import InputError

_CHUNK = 1 << 20  # bytes read at once
_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_LITERAL = 16  # an error this near the end of what was read may be a literal or an escape cut in two


def read_array(read: Callable[[int], bytes], start: Place) -> Iterator[tuple[Place, Any]]:
    """Yield the values of the JSON array that `read(size)` gives the bytes of, each with its place.

    Uses the standard library's scanner on a window of the text. Raises InputError, with the line, when the array is
    broken, cut off, or not UTF-8, and when something follows it.
    """
    window = _Window(read, start)
    window.take("[")
    if window.next_character() != "]":
        while True:
            place = window.place_of_next()
            yield place, window.take_value()
            if window.next_character() == "]":
                break
            window.take(",")
    window.take("]")
    if window.next_character():
        raise window.place().error(
            "there is more after the end of the array", "write all records into one array, or one a line (JSON Lines)"
        )


class _Window:
    """The part of the text that is being looked at; grows at its end, forgets what was read."""

    def __init__(self, read: Callable[[int], bytes], start: Place) -> None:
        self._read, self._path = read, start.path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text, self._at = "", 0
        self._line, self._line_at = start.line, 0  # the line of position _line_at
        self._values = 0  # read so far
        self._ended = False

    def place(self) -> Place:
        """The place of the current position."""
        self._line += self._text.count("\n", self._line_at, self._at)
        self._line_at = self._at
        return Place(self._path, self._line)

    def place_of_next(self) -> Place:
        """The place of the next character that is not space."""
        self.next_character()
        return self.place()

    def next_character(self) -> str:
        """Step over space and look at the next character; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._grow(_CHUNK)

    def take(self, wanted: str) -> None:
        """Step over `wanted`."""
        found = self.next_character()
        if not found:
            raise self._cut_off()
        if found != wanted:
            raise self.place().error(
                f"the JSON is broken after record {self._values}: {found!r} instead of , or ]",
                "mend the file at this line",
            )
        self._at += 1

    def take_value(self) -> Any:
        """Read the next value."""
        while True:
            try:
                value, self._at = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                open_string = error.msg.startswith("Unterminated string")
                if not self._ended and (open_string or error.pos >= len(self._text) - _LONGEST_LITERAL):
                    self._grow(max(_CHUNK, len(self._text) - self._at))  # the rest may just not be here yet
                    continue
                if open_string or error.pos >= len(self._text.rstrip()):
                    raise self._cut_off() from None
                raise self._place_at(error.pos).error(
                    f"record {self._values + 1} is not JSON: {error.msg}: {excerpt(self._text, error.pos)}",
                    "mend or remove it",
                ) from None
            except ValueError as error:  # a number of 5000 digits
                raise self.place().error(
                    f"record {self._values + 1} is not JSON: {error}", "mend or remove it"
                ) from None
            except RecursionError:
                raise self.place().error(f"record {self._values + 1} is nested too deeply", "remove it") from None
            self._values += 1
            return value

    def _place_at(self, position: int) -> Place:
        return Place(self._path, self.place().line + self._text.count("\n", self._at, position))

    def _cut_off(self) -> InputError:
        return self._place_at(len(self._text.rstrip())).error(
            f"the JSON array is cut off after {self._values} whole record{'' if self._values == 1 else 's'}",
            "get the whole file, or close the array with ] after the last whole record",
        )

    def _grow(self, size: int) -> None:
        self.place()
        self._text = self._text[self._at :]
        self._at = self._line_at = 0
        data = self._read(size)
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            if self._ended:  # in the middle of a character
                raise self._cut_off() from None
            lines = self._text.count("\n") + error.object.count(b"\n", 0, error.start)
            raise not_utf8(Place(self._path, self._line + lines), error.object, error.start) from None
