"""Looking a tokenizer over: what it has, what it lacks, and whether text comes back from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spark13b.data.tokenizer import BOS, BOT, END, EOS, PAD, RET, UNK, USER, SparkTokenizer
from spark13b.errors import InputError

SAMPLES = (
    "今天天气很好，我们去公园吧。",
    "The quick brown fox jumps over the lazy dog.",
    "第一行\n第二行",
    "价格：¥3.50（约 50%）",
    "def f(x): return x * 2",
    "🦄 𠮷野家 ė",
)
_SHOWN = (PAD, BOS, EOS, UNK, END, RET, USER, BOT)

Fidelity = Literal["exact", "normalized", "lost"]


@dataclass(frozen=True)
class RoundTrip:
    """A text, its number of tokens, and what they decode to.

    `exact`: the text. `normalized`: another spelling that has the same tokens, by the model's own rules. `lost`: not
    even that, or unknown tokens.
    """

    text: str
    tokens: int
    decoded: str
    fidelity: Fidelity


@dataclass(frozen=True)
class TokenizerReport:
    """What `spark13b tokenizer check` shows. `special_tokens` has None for one that the model need not have."""

    path: str
    pieces: int
    special_tokens: dict[str, int | None]
    byte_pieces: int  # 256 when every character can be written
    normalizer: str
    fingerprint: str  # SHA-256 of the model file
    round_trips: list[RoundTrip]

    @property
    def problem(self) -> InputError | None:
        """The error to raise when the tokenizer is not fit for use: it lacks byte pieces, or texts do not come back."""
        if self.byte_pieces < 256:
            return InputError(
                f"the tokenizer has {self.byte_pieces} of the 256 byte pieces <0x00> to <0xFF>: "
                "characters without a piece of their own are lost",
                where=self.path,
                fix="use the tokenizer of iFlytekSpark, or train one with 'spark13b tokenizer train'",
            )
        lost = [trip for trip in self.round_trips if trip.fidelity == "lost"]
        if lost:
            return InputError(
                f"{len(lost)} of {len(self.round_trips)} sample texts do not come back: "
                f"{lost[0].text!r} became {lost[0].decoded!r}",
                where=self.path,
                fix="train one with 'spark13b tokenizer train'",
            )
        return None


def check_tokenizer(folder: str | Path) -> TokenizerReport:
    """Look at `folder/tokenizer.model`. Raises InputError when it is missing, no model, or lacks a special token."""
    tokenizer = SparkTokenizer.load(folder)
    return TokenizerReport(
        path=tokenizer.where,
        pieces=tokenizer.vocab_size,
        special_tokens={piece: tokenizer.id_of(piece) for piece in _SHOWN},
        byte_pieces=tokenizer.byte_pieces,
        normalizer=tokenizer.normalizer,
        fingerprint=tokenizer.fingerprint,
        round_trips=[_round_trip(tokenizer, text) for text in SAMPLES],
    )


def _round_trip(tokenizer: SparkTokenizer, text: str) -> RoundTrip:
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    fidelity: Fidelity = "lost"
    if decoded == text:
        fidelity = "exact"
    elif tokenizer.unk_id not in ids and tokenizer.encode(decoded) == ids:
        fidelity = "normalized"
    return RoundTrip(text, len(ids), decoded, fidelity)
