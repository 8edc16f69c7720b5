"""What becomes of an instruction example that is longer than a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from spark13b.data.encoding import Example, Tokens
from spark13b.data.ledger import Ledger

Overlong = Literal["error", "truncate", "split", "drop"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that stay together in one row: `ids` (n,) int32; those from `learned_from` on are learned (mask 1)."""

    ids: Tokens
    learned_from: int


def fitted(examples: Iterable[Example], row_length: int, overlong: Overlong, ledger: Ledger) -> Iterator[Piece]:
    """Yield each example as one piece of at most `row_length` tokens, a longer one as `overlong` says.

    - `error`: InputError with file, line and number of tokens.
    - `truncate`: the end of the answer goes, `<end>` with it: the answer does not end there. An example whose prompt
      alone fills the row teaches nothing and is dropped.
    - `split`: pieces that overlap by one token, which is learned in the first of them and context in the second: a
      model learns a token only where it sees the one before. So each token of the answer is learned exactly once.
    - `drop`: it goes.

    The ledger is told what became of each.
    """
    for example in examples:
        length = len(example.ids)
        if length <= row_length:
            ledger.packed += 1
            pieces = [Piece(example.ids, example.prompt_length)]
        elif overlong == "error":
            raise example.place.error(
                f"the example has {length:,} tokens ({example.prompt_length:,} of them the prompt), "
                f"a row holds {row_length:,}",
                f"--seq-length {length - 1} or more, or --overlong truncate, split or drop",
            )
        elif overlong == "split":
            ledger.split += 1
            pieces = _split(example, row_length)
        elif overlong == "truncate" and example.prompt_length < row_length:
            ledger.truncated += 1
            ledger.lost_tokens += length - row_length
            pieces = [Piece(example.ids[:row_length], example.prompt_length)]
        else:
            ledger.dropped += 1
            ledger.lost_tokens += length
            continue
        ledger.kept += 1
        ledger.tokens += sum(len(piece.ids) for piece in pieces)
        yield from pieces


def _split(example: Example, row_length: int) -> list[Piece]:
    step = row_length - 1  # one token of each further piece is context
    return [
        Piece(example.ids[start : start + row_length], max(example.prompt_length - start, min(start, 1)))
        for start in range(0, len(example.ids) - 1, step)
    ]
