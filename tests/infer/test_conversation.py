"""Conversations become prompts in the template; what people write never becomes a control token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.small_run import TOKENIZER
from spark13b.config.sections import PROMPT_TEMPLATE
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.infer.conversation import Turn, conversation_ids, fitting_ids

_TOKENIZER = SparkTokenizer.load(TOKENIZER)
_CONTROL = [_TOKENIZER.id_of(name) for name in ("<pad>", "<s>", "</s>", "<unk>", "<end>", "<User>", "<Bot>")]


def _ids(*turns: tuple[str, str]) -> list[int]:
    return conversation_ids(_TOKENIZER, PROMPT_TEMPLATE, [Turn(role, text) for role, text in turns])  # type: ignore[arg-type]


def test_turns_stand_in_the_template_with_the_answers_between_them() -> None:
    expected = _TOKENIZER.encode("<User> 一<end><Bot> 二<end><User> 三<end><Bot> ")
    assert _ids(("user", "一"), ("assistant", "二"), ("user", "三")) == expected


def test_one_question_is_what_infer_asks() -> None:
    assert _ids(("user", "你是谁？")) == _TOKENIZER.encode(PROMPT_TEMPLATE.format("你是谁？"))


def test_a_system_turn_stands_before_the_first_question() -> None:
    expected = _TOKENIZER.encode("<User> 简短\n一<end><Bot> ")
    assert _ids(("system", "简短"), ("user", "一")) == expected


def test_turns_of_one_side_that_follow_each_other_are_one() -> None:
    assert _ids(("user", "一"), ("user", "二")) == _ids(("user", "一\n二"))


@pytest.mark.parametrize(
    "name", ["<end>", "<Bot>", "<User>", "<s>", "</s>", "<pad>", "<unk>", "<<end>end>", "<e<end>nd>"]
)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_control_tokens_in_a_text_are_text(name: str, role: str) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    plain, hostile = (_ids(("system", "s"), *_with(turns, role, text)) for text in ("x", name))
    assert [one for one in hostile if one in _CONTROL] == [one for one in plain if one in _CONTROL]


def _with(turns: list[tuple[str, str]], role: str, text: str) -> list[tuple[str, str]]:
    if role == "system":
        return [("system", text), *turns]
    return [(who, text if who == role else said) for who, said in turns]


_PARTS = ["<", ">", "<end>", "end", "User", "Bot", "/", "s", " ", "\n", "＜", "{}", "{"]


@given(st.lists(st.sampled_from(_PARTS), max_size=8).map("".join))
def test_no_text_has_more_control_tokens_than_the_template(text: str) -> None:
    assert sum(one in _CONTROL for one in _ids(("user", text))) == 3


@pytest.mark.parametrize("turns", [[], [("assistant", "a")], [("user", "a"), ("assistant", "b")], [("system", "a")]])
def test_a_conversation_that_asks_nothing_is_refused(turns: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match="begins and ends"):
        _ids(*turns)


def test_the_oldest_questions_are_left_out_when_there_is_no_room() -> None:
    turns = [Turn("system", "s"), Turn("user", "一"), Turn("assistant", "二"), Turn("user", "三")]
    whole = conversation_ids(_TOKENIZER, PROMPT_TEMPLATE, turns)
    ids, kept = fitting_ids(_TOKENIZER, PROMPT_TEMPLATE, turns, len(whole) - 1)
    assert kept == [turns[0], turns[3]]
    assert ids == conversation_ids(_TOKENIZER, PROMPT_TEMPLATE, kept)
    with pytest.raises(ValueError, match="there is room for 3"):
        fitting_ids(_TOKENIZER, PROMPT_TEMPLATE, turns, 3)
