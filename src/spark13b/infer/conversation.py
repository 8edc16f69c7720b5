"""A conversation as a prompt: every turn in the preset's template, the answers between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from spark13b.data.tokenizer import BOS, BOT, END, EOS, PAD, UNK, USER, SparkTokenizer

_CONTROL = (PAD, BOS, EOS, UNK, END, USER, BOT)

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: Role
    content: str


def conversation_ids(tokenizer: SparkTokenizer, template: str, turns: Sequence[Turn]) -> list[int]:
    """The prompt that asks for the next answer. `turns` ends with a question; a system turn stands before the first.

    Turns of one side that follow each other are one, on several lines. What people wrote is text: `<end>` or `<Bot>` in
    it become no control tokens. Raises ValueError for turns in another order, and for half a character.
    """
    system = "\n".join(turn.content for turn in turns if turn.role == "system")
    spoken: list[Turn] = []
    for turn in turns:
        if turn.role == "system":
            continue
        if spoken and spoken[-1].role == turn.role:
            turn = Turn(turn.role, f"{spoken.pop().content}\n{turn.content}")
        spoken.append(turn)
    if not spoken or spoken[0].role != "user" or spoken[-1].role != "user":
        raise ValueError("a conversation begins and ends with what the user says")
    if system:
        spoken[0] = Turn("user", f"{system}\n{spoken[0].content}")
    text = "".join(
        template.format(_plain(turn.content)) if turn.role == "user" else _plain(turn.content) + END for turn in spoken
    )
    return tokenizer.encode(text)


def fitting_ids(
    tokenizer: SparkTokenizer, template: str, turns: Sequence[Turn], room: int
) -> tuple[list[int], list[Turn]]:
    """`conversation_ids` in at most `room` tokens, without the oldest questions and answers where they do not fit.

    Returns the turns that were kept, too. Raises ValueError when the last question alone is too long.
    """
    kept = list(turns)
    while True:
        ids = conversation_ids(tokenizer, template, kept)
        if len(ids) <= room:
            return ids, kept
        questions = [index for index, turn in enumerate(kept) if turn.role == "user"]
        if len(questions) < 2:
            raise ValueError(f"the question has {len(ids)} tokens, there is room for {room}")
        kept = [turn for turn in kept[: questions[1]] if turn.role == "system"] + kept[questions[1] :]


def _plain(text: str) -> str:
    """The text with a space inside every name of a control token."""
    for name in _CONTROL:
        text = text.replace(name, f"{name[0]} {name[1:]}")
    return text
