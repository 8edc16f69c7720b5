"""The text of an answer: whole characters, cut before stop strings, handed out as soon as it is certain."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark13b.data.tokenizer import SparkTokenizer
from spark13b.infer.answer_text import AnswerText


class Spelled:
    """A decoder whose tokens are pieces of text by their number."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def push(self, token: int) -> str:
        return self.pieces[token]

    def finish(self) -> str:
        return ""


def read(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    """What is handed out for each piece and at the end, and whether a stop string was found."""
    text = AnswerText(Spelled(pieces), stops)  # type: ignore[arg-type]
    given = [text.push(token) for token in range(len(pieces))]
    return [*given, text.finish()], text.stopped


def cut(text: str, stops: list[str]) -> str:
    return text[: min([place for place in map(text.find, stops) if place >= 0], default=len(text))]


letters = st.text("ab。", max_size=4)


@given(st.lists(letters, max_size=12), st.lists(st.text("ab。", min_size=1, max_size=4), max_size=3))
def test_the_pieces_make_up_the_text_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    given, stopped = read(pieces, stops)
    whole = "".join(pieces)
    assert "".join(given) == cut(whole, stops)
    assert stopped == any(stop in whole for stop in stops)


@given(st.lists(letters, max_size=12), st.lists(st.text("ab。", min_size=1, max_size=4), max_size=3))
def test_only_what_may_become_a_stop_string_is_held_back(pieces: list[str], stops: list[str]) -> None:
    text = AnswerText(Spelled(pieces), stops)  # type: ignore[arg-type]
    out, whole = "", ""
    for token, piece in enumerate(pieces):
        out += text.push(token)
        whole += piece
        if text.stopped:
            break
        held = whole[len(out) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_stop_string_over_several_tokens_ends_the_answer_before_it() -> None:
    assert read(["你好", "，再", "见", "了"], ["再见"]) == (["你好", "，", "", "", ""], True)


def test_what_only_looked_like_one_is_handed_out_when_that_is_certain() -> None:
    assert read(["a<", "/", "b", "c<"], ["</s>"]) == (["a", "", "</b", "c", "<"], False)


def test_below_the_least_number_of_tokens_a_stop_string_does_not_stop() -> None:
    text = AnswerText(Spelled(["x", "stop", "y", "stop"]), ["stop"])  # type: ignore[arg-type]
    assert [text.push(0, watched=False), text.push(1, watched=False), text.push(2), text.push(3)] == [
        "x",
        "stop",
        "y",
        "",
    ]
    assert text.stopped


@pytest.mark.parametrize("question", ["你好！🌏 naïve", "Ω≈ç√"])
def test_characters_of_several_bytes_come_whole(question: str) -> None:
    tokenizer = SparkTokenizer.load(Path(__file__).parents[1] / "golden" / "tokenizer")
    ids = tokenizer.encode(question)
    text = AnswerText(tokenizer.stream(), ["absent"])
    pieces = [text.push(token) for token in ids] + [text.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
