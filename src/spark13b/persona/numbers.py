"""Ages, dates, heights, weights and sums of money in Chinese text, in Chinese or Arabic digits, made comparable.

二十岁 = ２０岁, 五月三日 = 5月3号 = 05-03, 一米六五 = 1.65米 = 165cm, 九十六斤 = 48公斤.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10000}
_CHINESE = "零〇一二两三四五六七八九十百千万"
NUMBER = rf"(?:[0-9]+(?:\.[0-9]+)?|[{_CHINESE}]+)"

# festivals on which people are born; lunar ones are marked
_FESTIVALS = {
    "元旦": (1, 1, False),
    "情人节": (2, 14, False),
    "妇女节": (3, 8, False),
    "植树节": (3, 12, False),
    "愚人节": (4, 1, False),
    "劳动节": (5, 1, False),
    "青年节": (5, 4, False),
    "儿童节": (6, 1, False),
    "建党节": (7, 1, False),
    "建军节": (8, 1, False),
    "教师节": (9, 10, False),
    "国庆": (10, 1, False),
    "光棍节": (11, 11, False),
    "平安夜": (12, 24, False),
    "圣诞": (12, 25, False),
    "春节": (1, 1, True),
    "大年初一": (1, 1, True),
    "元宵": (1, 15, True),
    "端午": (5, 5, True),
    "七夕": (7, 7, True),
    "中秋": (8, 15, True),
    "重阳": (9, 9, True),
    "腊八": (12, 8, True),
    "除夕": (12, 30, True),
}
# ages by their old names
_AGES = {
    "豆蔻": 13, "及笄": 15, "二八年华": 16, "弱冠": 20, "双十年华": 20, "花信": 24, "而立": 30, "不惑": 40,
    "知天命": 50, "花甲": 60, "耳顺": 60, "古稀": 70, "耄耋": 80, "期颐": 100,
}  # fmt: skip
_LUNAR_MONTHS = {"正月": "一月", "冬月": "十一月", "腊月": "十二月"}


def normalize(text: str) -> str:
    """Full-width forms become ASCII, capitals small letters; blanks go, except between words of Latin letters."""
    text = unicodedata.normalize("NFKC", text).lower().replace("<ret>", "\n")
    return re.sub(r"(?<![a-z])[ \t\u200b\ufeff]+|[ \t\u200b\ufeff]+(?![a-z])", "", text)


def number(text: str) -> float | None:
    """The value of a number in Arabic or Chinese digits (二〇二四, 一百六十五, 两, 三万五), or None."""
    try:
        return float(text)
    except ValueError:
        pass
    if not text or set(text) - set(_CHINESE):
        return None
    if not set(text) & set(_UNITS):
        return float("".join(str(_DIGITS[digit]) for digit in text))
    total = section = 0.0
    digit: float | None = None
    last_unit = 1
    for sign in text:
        if sign in _DIGITS:
            digit = _DIGITS[sign]
            if sign in "零〇":
                last_unit = 10  # 一百零五 is not 一百五
        elif sign == "万":
            total += (section + (digit or 0)) * 10000
            section, digit, last_unit = 0.0, None, 10000
        else:
            section += (1 if digit is None else digit) * _UNITS[sign]
            digit, last_unit = None, _UNITS[sign]
    return total + section + (digit or 0) * (last_unit / 10 if last_unit > 10 else 1)


def ages(text: str) -> list[float]:
    """Ages in years: 二十岁, 20周岁, 三百年; only when no unit is there at all, a number that stands alone."""
    text = re.sub(rf"(?:大|小|差)了?{NUMBER}岁", "", text)  # 比你小三岁
    text = re.sub("(?<=十)有(?=[一二三四五六七八九])", "", text)  # 二十有三
    found = [number(match[1]) for match in re.finditer(rf"({NUMBER})(?:周|多)?岁", text)]
    found += [float(age) for name, age in _AGES.items() if name in text]
    if not found:
        found = [number(match[1]) for match in re.finditer(rf"({NUMBER})年(?!级|代)", text)]
        found = [value for value in found if value is not None and value < 1900]
    return [value for value in found or bare(text) if value is not None]


def bare(text: str) -> list[float]:
    """Numbers that no unit and no other word follows: 二十。 二十啦 23."""
    ends = r"(?=(?:[了啦吧呀啊哦呢喽咯的多整]|左右|上下|而已|罢了|出头)*(?:[^\w%‰]|$))"
    found = [number(match[1]) for match in re.finditer(rf"(?<![0-9.第]){_guard()}({NUMBER}){ends}", text)]
    return [value for value in found if value is not None]


def _guard() -> str:
    return rf"(?<![{_CHINESE}])"


def lengths(text: str) -> list[float]:
    """Heights in cm: 一米六五, 1米7, 1.65m, 165厘米, 165公分."""
    found: list[float] = []
    for match in re.finditer(rf"({NUMBER})(?:米|m(?!l))({NUMBER})?", text):
        metres, rest = number(match[1]), match[2]
        if metres is None:
            continue
        part = number(rest) if rest else None
        if part is not None:
            part = part if part >= 10 else part * 10 if not rest.startswith(("零", "0")) else part
        found.append(round(metres * 100 + (part or 0), 1))
    for match in re.finditer(rf"({NUMBER})(?:cm|厘米|公分)", text):
        value = number(match[1])
        if value is not None:
            found.append(value)
    return found


def weights(text: str) -> list[float]:
    """Weights in kg: 48公斤, 48kg, 四十八千克, 九十六斤."""
    found: list[float] = []
    for match in re.finditer(rf"({NUMBER}?)(公斤|千克|kg|斤)", text):
        digits = match[1]
        if match[2] == "千克" or not digits.endswith("千"):
            value = number(digits)
            if value is not None:
                found.append(value / 2 if match[2] == "斤" else value)
    return found


def money(text: str) -> list[float]:
    """Sums of money, whatever the currency: 一万五, 6000元, 五千块, 三百两, 六千多."""
    found = [number(match[1]) for match in re.finditer(rf"({NUMBER})多?(?:元|块|美元|美金|rmb|两|文|k)", text)]
    found += [
        number(match[1]) for match in re.finditer(r"([一二两三四五六七八九十]+[百千万][一二三四五六七八九]?)多?", text)
    ]
    return [value for value in found if value is not None]


@dataclass(frozen=True, slots=True)
class Day:
    """A date, as much of it as was said; `lunar` is the farmers' calendar (初八, 腊月, 农历), None either."""

    year: int | None = None
    month: int | None = None
    day: int | None = None
    lunar: bool | None = False

    def agrees(self, other: Day) -> bool:
        """Whether nothing that both say differs, and something is said by both."""
        both = [
            (mine, theirs)
            for mine, theirs in ((self.year, other.year), (self.month, other.month), (self.day, other.day))
            if mine is not None and theirs is not None
        ]
        if self.year is not None and other.year is not None and min(self.year, other.year) < 100:
            both[0] = (self.year % 100, other.year % 100)  # 五六年 is 1956
        if self.month and other.month and None not in (self.lunar, other.lunar) and self.lunar != other.lunar:
            return False
        return bool(both) and all(mine == theirs for mine, theirs in both)


def days(text: str) -> list[Day]:
    """Dates: 2024年1月30日, 二〇二四年, 五月三号, 05-03, 5/3, 2024.1.30, 腊月初八, 国庆节."""
    lunar_said = bool(re.search("农历|阴历|旧历", text))
    for name, month in _LUNAR_MONTHS.items():
        if name in text:
            text, lunar_said = text.replace(name, month), True
    found: list[Day] = []

    def keep(match: re.Match[str]) -> str:
        parts = [number(part) if part else None for part in match.groups()]
        year, month, day = (int(part) if part is not None else None for part in parts)
        if (month is None or 1 <= month <= 12) and (day is None or 1 <= day <= 31):
            either = month is not None and day is not None and match[0][-1] in _CHINESE  # 八月十五 is of both calendars
            found.append(Day(year, month, day, lunar_said or "初" in match[0] or (None if either else False)))
            return "|"
        return match[0]

    digits = rf"[0-9{_CHINESE}]+"
    text = re.sub(rf"(?:({digits})年的?)?({digits})月份?(?:初?({digits})[日号]?)?", keep, text)
    text = re.sub(r"(?<![0-9.])([0-9]{4})[-/.]([0-9]{1,2})[-/.]([0-9]{1,2})(?![0-9])", keep, text)
    text = re.sub(r"(?<![0-9.])()([0-9]{1,2})[-/.]([0-9]{1,2})(?![0-9])", keep, text)
    text = re.sub(rf"([0-9]{{4}}|[0-9]{{2}}|[{_CHINESE}]{{4}}|[零〇一二三四五六七八九]{{2}})年()()", keep, text)
    return found + [Day(None, *festival) for name, festival in _FESTIVALS.items() if name in text]
