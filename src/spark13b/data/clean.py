"""Text cleaning: what training rows, tokenizer training and the original agree on."""

from __future__ import annotations

from spark13b.data.tokenizer import RET


def clean(text: str) -> str:
    r"""Strip `text`; turn the written-out escapes `\r\n` and `\n` and real line ends into `<ret>`.

    The escapes are two or four ordinary characters, as the original reads them: `\nabla` becomes `<ret>abla`, too.
    A carriage return alone also ends a line; the original leaves it in the text.
    """
    text = text.strip()
    if "\\" in text:
        text = text.replace("\\r\\n", RET).replace("\\n", RET)
    if "\r" in text:
        text = text.replace("\r\n", RET).replace("\r", RET)
    return text.replace("\n", RET)
