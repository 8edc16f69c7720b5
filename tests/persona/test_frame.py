"""A line of output.txt: exactly the original's frame, and nothing inside a value can break it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark13b.errors import InputError
from spark13b.persona.frame import Example, frame, plain_answer, plain_question, unframe

PERSONA = {"角色|身份": "智能助手", "姓名|名字|称呼": "小雅"}
LINE = (
    "假设你是一个用户可自定义的讯飞星火开源的AI助手,在给定的人设背景下回复用户问题<ret>##人设背景如下:"
    "(你的角色|身份:智能助手),(你的姓名|名字|称呼:小雅)##用户:{你叫什么？}##参考答案:{我叫讯飞星火。}##回答:{}"
)
# signs of the frame, joined to anything: what could break it
SIGNS = ["{", "}", "#", "##", "}##参考答案:{", "##用户:{", "##回答:{}", "),(你的", ")，(你的", "(", ")", ",", ":", "："]
SIGNS += ["\\", "＼", "｛", "｝", "＃", "＼(", "年龄", "a"]
TEXTS = st.lists(st.sampled_from([*SIGNS, "\n", "\u2028", "\x85", " "]), max_size=12).map("".join)
KEYS = TEXTS.filter(lambda key: key and not set(key) & set(":：\n"))


def test_a_line_is_exactly_the_originals() -> None:
    assert frame(PERSONA, "你叫什么？", "我叫讯飞星火。") == LINE


def test_a_line_tells_back_what_it_was_made_of() -> None:
    assert unframe(LINE) == Example(PERSONA, "你叫什么？", "我叫讯飞星火。")


def test_lines_of_the_original_tool_with_its_full_width_punctuation_are_read() -> None:
    line = (
        "假设你是一个用户可自定义的讯飞星火开源的AI助手，在给定的人设背景下回复用户问题<ret>##人设背景如下："
        "(你的角色|身份：智能助手)，(你的姓名|名字|称呼：小雅)##用户：{你叫什么？}##参考答案：{我叫讯飞星火。}##回答：{}"
    )
    assert unframe(line) == unframe(LINE)


def test_signs_of_the_frame_are_written_in_full_width_and_line_ends_as_ret() -> None:
    line = frame({"爱好": "集合{1}"}, "a}##回答:{}\r\nb#1", "x\ny")
    assert line.endswith("(你的爱好:集合｛1｝)##用户:{a｝＃＃回答:｛｝<ret>b#1}##参考答案:{x<ret>y}##回答:{}")


@given(st.dictionaries(KEYS, TEXTS, min_size=1, max_size=3), TEXTS, TEXTS)
def test_every_value_comes_back_as_it_was(persona: dict[str, str], question: str, reference: str) -> None:
    line = frame(persona, question, reference)
    assert "\n" not in line and line.count("##") == 4
    assert unframe(line) == Example(persona, question, reference)


@pytest.mark.parametrize(
    "line", ["", "你好", LINE[:-1], LINE + "x", LINE.replace("(你的", "("), LINE.replace("用户:", "")]
)
def test_another_line_is_not_taken_for_one(line: str) -> None:
    assert unframe(line) is None


def test_a_key_that_could_not_be_told_from_its_value_is_refused() -> None:
    with pytest.raises(InputError, match="colon"):
        frame({"姓名:名字": "小雅"}, "a", "b")


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("我叫小雅。", "我叫小雅。"),
        ("{我叫小雅。}", "我叫小雅。"),
        ("##回答:{我叫小雅。}", "我叫小雅。"),
        ("回答：我叫小雅。", "我叫小雅。"),
        ('{"a": 1}', '{"a": 1}'),
        ("集合{1}和{2}", "集合{1}和{2}"),
        ("{1}和{2}", "{1}和{2}"),
        ("##回答:{}", ""),
    ],
)
def test_the_frame_that_a_teacher_fills_in_is_taken_off(answer: str, plain: str) -> None:
    assert plain_answer(answer) == plain


def test_the_users_mark_is_taken_off_a_question() -> None:
    assert plain_question("用户：你好") == plain_question("用户: 你好") == plain_question("你好") == "你好"
