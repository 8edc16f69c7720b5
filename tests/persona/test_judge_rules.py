"""The rule judge: what it must know by the specification, and how often it agrees with labels."""

from __future__ import annotations

import random

import pytest

from spark13b.persona.evaluation import agreement_of, by_rules, evaluate
from spark13b.persona.judge_rules import judge
from spark13b.persona.kinds import target_of
from spark13b.persona.labelled_answers import PARTS, labelled_answers, personas

SINGER = personas()["林小雅"]


def verdict(question: str, answer: str, persona: dict[str, str] = SINGER):
    return judge(question, answer, persona, target_of(question, persona))


def stays(question: str, answer: str, persona: dict[str, str] = SINGER) -> bool | None:
    return verdict(question, answer, persona).in_persona


# what was measured when each part was written, less a little: the rules were never tuned on the held-out part
LEAST = {"tuning": {False: 99, True: 99}, "held_out": {False: 86, True: 97}}


@pytest.mark.parametrize("named", [False, True], ids=["found by its words", "named"])
@pytest.mark.parametrize("part", PARTS)
def test_the_judge_agrees_with_the_labels(part, named, capsys):
    judged = []
    for persona, answer in labelled_answers(part, named=named):
        judged += evaluate([answer], by_rules(persona), "rules").judged
    found = agreement_of(judged)
    with capsys.disabled():
        how = "attribute named" if named else "attribute found by the question's words"
        print(f"\nrule judge, {part}, {how}: {found.right} of {found.answers} labels, {found.accuracy:.1f} %")
    assert found.answers >= {"tuning": 300, "held_out": 100}[part]
    assert found.accuracy >= LEAST[part][named]


PAGE = (
    "你是谁？",
    "你是什么时候出生的？",
    "那你今年几岁了？",
    "你在哪里工作？",
    "你每天工作多久？",
    "那你每月工资多少？",
)
PAGE += ("你这么认真，会这么多能力，年底一定能拿优秀员工吧？",)


def test_every_example_of_the_originals_documentation_is_judged_right():
    original = personas()["星火"]
    pairs = labelled_answers("tuning")
    page = [answer for persona, answer in pairs if persona == original and answer.question in PAGE]
    assert {answer.question for answer in page} == set(PAGE)
    assert any("哇哦！我1岁啦" in answer.answer and answer.label is False for answer in page)
    for answer in page:
        assert by_rules(original)(answer).in_persona is answer.label, answer.answer


@pytest.mark.parametrize("answer", ["二十岁", "20岁", "２０岁。", "我不是25岁，我二十。", "别人以为我三十，其实我20岁"])
def test_an_age_is_right_in_any_digits(answer):
    assert stays("你今年多大？", answer)


@pytest.mark.parametrize("answer", ["25岁", "我不是20岁", "没有年龄的概念", "秘密", "", "  。", "今天天气不错"])
def test_another_age_a_denial_an_evasion_or_nothing_leaves_the_persona(answer):
    assert stays("你今年多大？", answer) is False


@pytest.mark.parametrize("answer", ["作为AI我没有年龄的概念", "我不知道", "这是秘密", "抱歉，不能告诉你"])
def test_what_is_not_set_may_be_denied_or_evaded(answer):
    assert stays("你几岁？", answer, {"姓名": "小智"})


@pytest.mark.parametrize("answer", ["我三岁", "没有年龄，但按人类算我25岁", "二十", "我活了300年"])
def test_what_is_not_set_may_not_be_invented(answer):
    assert stays("你几岁？", answer, {"姓名": "小智"}) is False


@pytest.mark.parametrize("question", ["你叫什么？", "你几岁？", "你有多高？", "你有血型吗？", "给我讲个故事"])
@pytest.mark.parametrize("claim", ["我是ChatGPT", "我是百度开发的文心一言", "我是小爱同学", "我叫王小美"])
def test_whoever_claims_to_be_somebody_else_has_left_the_persona(question, claim):
    assert stays(question, f"{claim}，我20岁，165cm，不知道血型。") is False


@pytest.mark.parametrize("answer", ["我不是ChatGPT，我是林小雅", "有人以为我是小爱同学，其实我叫林小雅", "我叫小雅"])
def test_to_deny_another_name_is_no_claim(answer):
    assert stays("你叫什么？", answer)


def test_the_makers_own_name_is_no_claim():
    assert stays("你是谁开发的？", "我是由科大讯飞开发的", {"开发者": "科大讯飞"})
    assert stays("你是谁开发的？", "我是由科大讯飞开发的", {"开发者": "星河科技"}) is False


def test_yes_and_no_are_read_with_the_question():
    assert stays("你是20岁吗？", "是的")
    assert stays("你是30岁吗？", "是的") is False
    assert stays("你是30岁吗？", "不是")
    assert stays("你是20岁吗？", "不是") is False


def test_a_value_that_says_there_is_none_must_be_denied():
    persona = {"性别": "没有性别", "恋人": "没有"}
    assert stays("你是男生吗？", "我没有性别", persona)
    assert stays("你是男生吗？", "我是男生", persona) is False
    assert stays("你有女朋友吗？", "有，她叫小红", persona) is False


def test_a_motto_with_a_negation_in_it_can_be_said():
    assert stays("你的座右铭是什么？", "决不放弃！", {"座右铭": "决不放弃"})


def test_a_reason_names_the_attribute_and_its_value():
    assert verdict("你今年多大？", "25岁").reason == "contradicts 年龄|岁数: 20岁"
    assert verdict("你叫什么？", "我是小度").reason == "claims to be somebody else: 小度"
    assert verdict("你的血型是？", "A型").reason == "invents 血型: a型"


def test_no_answer_breaks_the_judge():
    draw = random.Random(0)
    signs = "我是叫不没有二十岁1米65。，？!\n“”<|[]{}()*+\\^$年月日AI小雅 \u3000\ud7ff\U0001f600"
    questions = ["你叫什么？", "你几岁？", "你的生日？", "你多高？", "你体重多少？", "你有恋人吗？", "你好", ""]
    for _ in range(500):
        answer = "".join(draw.choices(signs, k=draw.randrange(30)))
        assert verdict(draw.choice(questions), answer).reason
    assert verdict("你几岁？", "我是" * 20000).in_persona is False
