"""Quantities in Chinese text: the same value however it is written."""

from __future__ import annotations

import pytest

from spark13b.persona.numbers import Day, ages, bare, days, lengths, money, normalize, number, weights


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("20", 20),
            ("二十", 20),
            ("十", 10),
            ("两", 2),
            ("〇", 0),
            ("一百零五", 105),
            ("一百五", 150),
            ("一百一十", 110),
        ),
        *(
            ("二〇二四", 2024),
            ("一万五", 15000),
            ("三千", 3000),
            ("二十三", 23),
            ("1.65", 1.65),
            ("十二万三千", 123000),
        ),
    ],
)
def test_numbers_in_chinese_and_arabic_digits(text, value):
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "岁", "二十岁", "abc", "1.2.3"])
def test_what_is_no_number_is_none(text):
    assert number(text) is None


@pytest.mark.parametrize(
    "text", ["二十岁", "20岁", "２０岁", "我今年 20 周岁啦", "二十。", "20", "双十年华", "活了二十年"]
)
def test_twenty_years_however_they_are_written(text):
    assert ages(normalize(text)) == [20]


@pytest.mark.parametrize("text", ["90后", "2024年", "第3名", "20%", "三年级", "我有20个朋友"])
def test_other_numbers_are_no_ages(text):
    assert ages(normalize(text)) == []


@pytest.mark.parametrize(
    "text", ["一米六五", "1米65", "1.65米", "1.65m", "165cm", "１６５ＣＭ", "165厘米", "一百六十五公分"]
)
def test_one_metre_sixty_five_however_it_is_written(text):
    assert lengths(normalize(text)) == [165]


@pytest.mark.parametrize(("text", "height"), [("一米七", 170), ("1米7", 170), ("一米零五", 105), ("2米", 200)])
def test_other_heights(text, height):
    assert lengths(text) == [height]


@pytest.mark.parametrize("text", ["48公斤", "48kg", "四十八千克", "九十六斤", "96 斤"])
def test_forty_eight_kilograms_however_they_are_written(text):
    assert weights(normalize(text)) == [48]


@pytest.mark.parametrize(("text", "sum_"), [("一万五", 15000), ("6000元", 6000), ("三百两", 300), ("每月六千多", 6000)])
def test_sums_of_money(text, sum_):
    assert sum_ in money(text)


@pytest.mark.parametrize("text", ["5月3日", "五月三号", "５月３日", "05-03", "5/3", "5.3", "我生日是五月三日哦"])
def test_the_third_of_may_however_it_is_written(text):
    assert days(normalize(text)) == [Day(None, 5, 3)]


@pytest.mark.parametrize("text", ["2024年1月30日", "2024-01-30", "2024/1/30", "2024.1.30", "二〇二四年一月三十日"])
def test_a_whole_date_however_it_is_written(text):
    assert days(normalize(text)) == [Day(2024, 1, 30)]


def test_dates_agree_in_what_both_say():
    whole = Day(1956, 10, 1)
    assert days("国庆节那天")[0].agrees(whole)
    assert days("五六年的")[0].agrees(whole)
    assert days("1956年")[0].agrees(whole)
    assert not days("1957年")[0].agrees(whole)
    assert not days("10月2日")[0].agrees(whole)
    assert not Day(1956).agrees(Day(None, 10, 1))  # nothing is said by both


def test_the_farmers_calendar_is_another_one():
    assert days("腊月初八") == days("农历十二月初八") == [Day(None, 12, 8, True)]
    assert days("腊八节")[0].agrees(Day(None, 12, 8, True))
    assert not days("12月8日")[0].agrees(Day(None, 12, 8, True))


def test_a_bare_number_is_one_that_no_unit_follows():
    assert bare("我二十,他三十个") == [20]


def test_full_width_signs_and_blanks_between_chinese_signs_go_away():
    assert normalize("ＡＩ　你 好，Hello World！") == "ai你好,hello world!"
