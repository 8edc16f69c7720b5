"""Rates, reports, labels and prediction files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from spark13b.errors import InputError
from spark13b.persona.attributes import read_attributes
from spark13b.persona.evaluation import Rate, by_labels, by_rules, evaluate
from spark13b.persona.judge_rules import Verdict
from spark13b.persona.predictions import read_predictions
from spark13b.persona.report_markdown import markdown

PERSONA = {"姓名|名字": "小雅", "年龄|岁数": "20岁"}
ROWS = [
    {"input": "你几岁？", "predict": "二十", "label": "in"},
    {"input": "你几岁？", "predict": "三十|岁 *x* <b>", "label": "out"},
    {"input": "你叫什么？", "predict": "小雅", "label": "in"},
    {"input": "你多高？", "predict": "一米七", "label": "in"},
    {"input": "1+1等于几？", "predict": "2", "label": "in"},
]


def written(folder: Path, rows: list[object]) -> Path:
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def report(tmp_path):
    return evaluate(read_predictions(written(tmp_path, ROWS), PERSONA), by_rules(PERSONA), "rules")


def test_rates_are_of_all_of_each_kind_and_of_each_attribute(report):
    assert report.total == Rate(5, 2)
    assert (report.total.out_of_persona, report.total.availability) == (40, 60)
    assert report.per_kind == {"set": Rate(3, 1), "unset": Rate(1, 1), "other": Rate(1, 0)}
    assert report.per_attribute == {
        ("set", "年龄|岁数"): Rate(2, 1),
        ("set", "姓名|名字"): Rate(1, 0),
        ("unset", "身高"): Rate(1, 1),
        ("other", "一般"): Rate(1, 0),
    }


def test_every_offending_answer_is_listed_with_its_line_and_reason(report):
    assert [(one["line"], one["attribute"], one["reason"]) for one in report.as_dict()["offending"]] == [
        (2, "年龄|岁数", "contradicts 年龄|岁数: 20岁"),
        (4, "身高", "invents 身高: 一米七"),
    ]


def test_labels_measure_the_judge_and_may_be_the_judge(report, tmp_path):
    found = report.as_dict()["agreement_with_labels"]
    assert (found["right"], found["accuracy"], found["missed"]) == (4, 80, [])
    assert [one["line"] for one in found["false_alarms"]] == [4]
    by_hand = evaluate(read_predictions(written(tmp_path, ROWS), PERSONA), by_labels, "labels")
    assert by_hand.total == Rate(5, 1)
    assert by_hand.agreement is None
    bare = read_predictions(written(tmp_path, [{"input": "a", "predict": "b"}]), PERSONA)
    with pytest.raises(InputError, match=r'(?s)no "label".*p.jsonl:1'):
        evaluate(bare, by_labels, "labels")


def test_an_answer_without_a_verdict_is_in_no_rate_and_is_listed(tmp_path):
    answers = read_predictions(written(tmp_path, ROWS), PERSONA)
    report = evaluate(answers, lambda one: Verdict(None if one.question == "你叫什么？" else True, "?"), "x", at_once=3)
    assert report.total == Rate(4, 0)
    assert [one.answer.place.line for one in report.undecided] == [3]
    assert [one.answer.place.line for one in report.judged] == [1, 2, 3, 4, 5]  # in order, however many at once
    assert "Answers without a verdict" in markdown(report)
    nobody = evaluate(answers, lambda one: Verdict(None, "?"), "x")
    assert nobody.as_dict()["out_of_persona_rate"] is None


def test_markdown_shows_answers_as_they_are_whatever_signs_are_in_them(report):
    page = markdown(report)
    assert r"| 2 | 你几岁？ | 三十\|岁 \*x\* &lt;b> | 年龄\|岁数 |" in page
    assert "**40.0 %**" in page and "**60.0 %**" in page
    tables = re.findall(r"(?:^\|.*\n?)+", page, re.MULTILINE)
    for table in tables:  # every row has the columns of its head
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"predict": "x"}, 'no "input"'),
        ({"input": "x"}, 'no "predict"'),
        ({"input": "x", "Predict": "y"}, 'rename "Predict" to "predict"'),
        ({"input": "x", "predict": 3}, '"predict" is not a text'),
        ({"input": "x", "predict": "y", "label": 1}, "this label is unknown: 1"),
        ({"input": "x", "predict": "y", "attribute": 1}, '"attribute" is not a text'),
        (["x"], "a record must be an object"),
    ],
)
def test_a_broken_line_is_named(row, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_predictions(written(tmp_path, [ROWS[0], row]), PERSONA)
    assert caught.value.line == 2


def test_attributes_keep_their_order_and_numbers_become_text(tmp_path):
    path = tmp_path / "attribute.json"
    path.write_text('\ufeff{"姓名|名字": " 小雅 ", "年龄": 20}', encoding="utf-8")
    assert list(read_attributes(path).items()) == [("姓名|名字", "小雅"), ("年龄", "20")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(("{}", "no attributes"), ("[]", "not one JSON object"), ('"x"', "not one JSON object"), ("", "not JSON")),
        *(('{"a": 1,}', "not JSON"), ('{"a": ""}', "'a' is empty"), ('{"a": "  "}', "'a' is empty")),
        *(('{"a": null}', "not a text"), ('{"a": true}', "not a text"), ('{"a": {"b": 1}}', "not a text")),
        *(('{"a|": "x"}', "is empty"), ('{"a|b": "x", "b": "y"}', "'b' is named twice"), ("[" * 10**5, "not JSON")),
        ('{"a": "x", "a": "y"}', "'a' is named twice"),
    ],
)
def test_attributes_that_are_wrong_are_named(text, message, tmp_path):
    path = tmp_path / "attribute.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)):
        read_attributes(path)
