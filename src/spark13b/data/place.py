"""Where something stands in an input file, and the errors that say so."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from spark13b.errors import InputError


class Place(NamedTuple):
    """Where a record begins: the file and the line, counted from 1."""

    path: Path
    line: int

    def error(self, what: str, fix: str) -> InputError:
        """An InputError that names this place."""
        return InputError(what, where=self.path, line=self.line, fix=fix)


def not_utf8(place: Place, data: bytes, at: int) -> InputError:
    """The error for byte `at` of `data`, which no UTF-8 text has there."""
    around = data[max(0, at - 12) : at].decode("utf-8", errors="ignore")
    return place.error(
        f"byte 0x{data[at]:02x} is not UTF-8" + (f" (after {around!r})" if around else ""),
        f"mend the byte, or convert the file: iconv -f gb18030 -t utf-8 '{place.path}' > NEW",
    )


def excerpt(text: str, at: int) -> str:
    """The text around position `at`, on one line."""
    start = max(0, at - 20)
    found = " ".join(text[start : at + 20].split())
    return ("…" if start else "") + found + ("…" if at + 20 < len(text) else "")
