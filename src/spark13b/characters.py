"""Half a character: an escape of JSON can write it (`\\ud83d` alone), and it is no text: UTF-8 cannot hold it."""

from __future__ import annotations

WHOLE = "remove the escape, or write the whole pair"


def half_character(text: str) -> str | None:
    """The half character that `text` holds, in words for an error; None when all are whole."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character: \\u{ord(text[error.start]):04x} without its other half"
    return None
