"""Questions about a persona: several wordings, tests apart from training, each found again by its words."""

from __future__ import annotations

from collections import Counter

import pytest

from spark13b.persona.catalogue import KINDS, TEST_FRAMES, TRAIN_FRAMES
from spark13b.persona.kinds import Target, kind_of_key, target_named, target_of
from spark13b.persona.labelled_answers import personas
from spark13b.persona.questions import questions_about

PERSONAS = personas() | {"unknown keys": {"武器": "长剑", "喜欢的季节": "秋天"}}
ORIGINAL = PERSONAS["星火"]  # of the original's documentation


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_has_several_wordings_for_tests_that_no_training_wording_equals(kind):
    assert len(set(kind.train)) >= 4
    assert len(set(kind.test)) >= 4
    assert not set(kind.train) & set(kind.test)
    assert not set(TRAIN_FRAMES) & set(TEST_FRAMES)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_wording_is_recognized(kind):
    for wording in (*kind.train, *kind.test):
        assert target_of(wording, {}) == Target(kind.name, "unset", kind)


@pytest.mark.parametrize("persona", PERSONAS.values(), ids=PERSONAS)
def test_questions_of_both_purposes_are_apart_and_found_again_by_their_words(persona):
    tests, trained = questions_about(persona, "test"), questions_about(persona, "train")
    assert not {one.input for one in tests} & {one.input for one in trained}
    for one in (*tests, *trained):
        target = target_of(one.input, persona)
        assert (target.attribute, target.asked) == (one.attribute, one.kind), one.input
    counts = Counter(one.attribute for one in tests)
    assert min(counts.values()) >= 4
    assert {one.attribute for one in tests if one.kind == "set"} == set(persona)


def test_every_synonym_of_a_key_is_asked_for():
    asked = " ".join(one.input for one in questions_about(ORIGINAL) if one.attribute == "姓名|名字|称呼")
    assert all(name in asked for name in ("你的姓名", "你的名字", "你的称呼"))


def test_a_key_that_nobody_knows_is_asked_for_by_its_name():
    made = [one for one in questions_about({"喜欢的季节": "秋天"}) if one.kind == "set"]
    assert [one.input for one in made] == [
        *("关于你喜欢的季节，你能讲讲吗？", "我想了解一下你喜欢的季节。", "可以透露一下你喜欢的季节吗？"),
        "那么，你喜欢的季节呢？",
    ]


def test_what_a_related_attribute_answers_is_not_asked_as_if_it_were_not_set():
    unset = {one.attribute for one in questions_about({"城市": "合肥", "妻子": "王秀兰"}) if one.kind == "unset"}
    assert not unset & {"城市", "住址", "妻子", "婚姻状况", "恋人"}
    assert {"年龄", "姓名", "血型"} <= unset


def test_a_key_is_known_by_any_of_its_names_and_by_the_first_that_has_a_kind():
    assert kind_of_key("岁数") is kind_of_key("年龄|岁数")
    assert kind_of_key("身份|职业").name == "角色"
    assert kind_of_key("武器") is None


@pytest.mark.parametrize(
    ("question", "attribute", "asked"),
    [
        *(("您贵姓？", "姓名|名字|称呼", "set"), ("你多大了", "年龄|岁数", "set"), ("你在哪上班", "所在单位", "set")),
        *(("你多高？", "身高", "unset"), ("你爸爸是谁", "父亲|爸爸", "set"), ("今天天气怎么样", "一般", "other")),
        *(("你是在哪儿诞生的？", "家乡", "unset"), ("你在什么地方诞生", "家乡", "unset")),
        *(("帮我写首诗", "一般", "other"), ("你好", "一般", "other"), ("你每天工作多久？", "其他", "unset")),
    ],
)
def test_what_a_question_asks_of_the_original_persona(question, attribute, asked):
    target = target_of(question, ORIGINAL)
    assert (target.attribute, target.asked) == (attribute, asked)


def test_a_record_may_name_what_is_asked_by_key_synonym_or_kind():
    assert target_named("年龄|岁数", ORIGINAL).attribute == "年龄|岁数"
    assert target_named("岁数", ORIGINAL).attribute == "年龄|岁数"
    assert target_named("年纪", ORIGINAL).attribute == "年龄|岁数"
    assert target_named("身高", ORIGINAL).asked == "unset"
    assert target_named("鞋码", ORIGINAL) == Target("鞋码", "unset")


@pytest.mark.parametrize(
    "question",
    [
        *(
            "中国有多少个民族？",
            "李白是谁？",
            "血型有几种？",
            "红楼梦的作者是谁？",
            "世界上最高的山有多高？",
            "法国的首都是哪个城市？",
        ),
        *(
            "怎么教育孩子？",
            "什么是人工智能？",
            "ChatGPT是谁开发的？",
            "推荐一部电影",
            "如何学好英语",
            "一斤等于多少克",
            "三加五等于几？",
        ),
        *("你知道长城在哪里吗？", "你觉得周杰伦的歌怎么样？", "谢谢你", "你好"),
    ],
)
def test_questions_about_the_world_are_not_about_the_persona(question):
    assert target_of(question, ORIGINAL) == Target("一般", "other")


@pytest.mark.parametrize(
    "question",
    [
        "今年多大了？",
        "叫什么名字？",
        "贵姓？",
        "有女朋友吗？",
        "结婚了吗？",
        "住在哪里？",
        "平时喜欢做什么？",
        "会说英语吗？",
    ],
)
def test_a_short_question_may_leave_out_whom_it_speaks_to(question):
    assert target_of(question, ORIGINAL).asked != "other"
