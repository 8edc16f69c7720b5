"""A line of output.txt: the frame in which a teacher is asked to answer as a persona.

    假设你是…,在给定的人设背景下回复用户问题<ret>##人设背景如下:(你的姓名:小雅),(你的年龄:20岁)##用户:{…}##参考答案:{…}##回答:{}

A line end inside a value is `<ret>`. What would end a part of the frame is written in full-width forms: `{` as `｛`,
`}` as `｝`, two or more `#` as so many `＃`. Where a value has one of these forms itself, or `＼`, a `＼` stands before
it, and before the `(` in `),(` of an attribute: so every value comes back as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from spark13b.errors import InputError

_HEAD = "假设你是一个用户可自定义的讯飞星火开源的AI助手,在给定的人设背景下回复用户问题<ret>##人设背景如下:"
_RET = "<ret>"
_LINE_END = re.compile(r"\r\n|\r|\n")
_WIDE = {"{": "｛", "}": "｝", "#": "＃"}
_NARROW = {wide: narrow for narrow, wide in _WIDE.items()}
_OWN = re.compile("[＼｛｝＃]")
_ENDING = re.compile("[{}]|#{2,}")
_BETWEEN = re.compile(r"(\)[,，])\(")
_WRITTEN = re.compile(r"＼(.)|[｛｝＃]|<ret>")
# the original's tools write , and : in full width; their lines are read, too
_FRAME = re.compile(
    r"假设你是[^#]*?人设背景下回复用户问题<ret>##人设背景如下[:：](?P<persona>.*?)"
    r"##用户[:：]\{(?P<question>.*?)\}##参考答案[:：]\{(?P<reference>.*)\}##回答[:：]\{\}"
)
_ATTRIBUTE = re.compile(r"(?P<key>[^:：]+)[:：](?P<value>.*)")


@dataclass(frozen=True, slots=True)
class Example:
    """What a line says: the attributes of a persona, a question, and an answer that another persona gave to it."""

    persona: dict[str, str]
    question: str
    reference: str


def frame(persona: Mapping[str, str], question: str, reference: str) -> str:
    """The line of an example, without its end. Raises InputError for a key with a colon or a line end in it."""
    attributes = []
    for key, value in persona.items():
        if re.search("[:：\r\n]", key):
            raise InputError("a key has a colon or a line end in it", where=repr(key), fix="write names joined by |")
        attributes.append(f"(你的{_attribute(key)}:{_attribute(value)})")
    return f"{_HEAD}{','.join(attributes)}##用户:{{{_safe(question)}}}##参考答案:{{{_safe(reference)}}}##回答:{{}}"


def unframe(line: str) -> Example | None:
    """What a line says, in full-width punctuation too; None when it is no such line."""
    found = _FRAME.fullmatch(line)
    if found is None or not (found["persona"].startswith("(你的") and found["persona"].endswith(")")):
        return None
    persona: dict[str, str] = {}
    for attribute in re.split(r"\)[,，]\(你的", found["persona"][len("(你的") : -1]):
        pair = _ATTRIBUTE.fullmatch(attribute)
        if pair is None:
            return None
        persona[_plain(pair["key"])] = _plain(pair["value"])
    return Example(persona, _plain(found["question"]), _plain(found["reference"]))


def plain_question(question: str) -> str:
    """A question without the `用户：` that the original's template has before it."""
    return re.sub(r"^\s*用户[:：]\s*", "", question)


def plain_answer(answer: str) -> str:
    """A teacher's answer without the `##回答:{...}` of the frame, where it has filled that in."""
    answer = re.sub(r"^\s*(##)?回答[:：]\s*", "", answer).strip()
    if re.fullmatch(r"\{[^{}]*\}", answer) and not _is_object(answer):
        answer = answer[1:-1].strip()
    return answer


def _is_object(text: str) -> bool:
    """Whether it is a JSON object with something in it: the answer itself, then."""
    try:
        return bool(json.loads(text))
    except ValueError:
        return False


def _safe(text: str) -> str:
    text = _OWN.sub(lambda own: "＼" + own[0], text)
    text = _ENDING.sub(lambda ending: "".join(_WIDE[sign] for sign in ending[0]), text)
    return _LINE_END.sub(_RET, text)


def _attribute(text: str) -> str:
    return _BETWEEN.sub(r"\1＼(", _safe(text))


def _plain(text: str) -> str:
    return _WRITTEN.sub(lambda sign: sign[1] or _NARROW.get(sign[0], "\n"), text)
