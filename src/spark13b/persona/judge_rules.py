"""The rule judge: does an answer stay in the persona?

A set attribute must be answered with its value; an answer that contradicts or evades leaves the persona. An attribute
that is not set must not be invented: to deny or to evade is right. Who claims to be somebody else has left it anyhow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spark13b.persona import numbers
from spark13b.persona.claims import claimed_name, claimed_other, same_name
from spark13b.persona.clauses import SECRETS, Clause, clauses_of, negates
from spark13b.persona.closed_sets import CLOSED, members
from spark13b.persona.kinds import Target, kind_of_key
from spark13b.persona.likeness import generic, mentions, says


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer stays in the persona (None: the judge did not say), and why not, or why."""

    in_persona: bool | None
    reason: str


def judge(question: str, answer: str, persona: Mapping[str, str], target: Target) -> Verdict:
    """Judge one answer to a question about `target` of a persona (its attributes: key to value)."""
    clauses = clauses_of(answer)
    if not clauses:
        return Verdict(False, "the answer is empty")
    other = claimed_other(clauses, persona.values())
    if other is not None:
        return Verdict(False, f"claims to be somebody else: {other}")
    named = _named_otherwise(clauses, persona)
    if named is not None:
        return Verdict(False, f"calls itself {named}")
    if target.asked == "other":
        return Verdict(True, "claims to be nobody else")
    if target.asked == "unset":
        return _unset(question, clauses, persona, target)
    return _set(question, clauses, persona, target)


def _named_otherwise(clauses: Sequence[Clause], persona: Mapping[str, str]) -> str | None:
    """A name that the answer gives itself and that is not the persona's."""
    claimed = claimed_name(clauses)
    names = [value for key, value in persona.items() if (kind := kind_of_key(key)) and kind.value == "name"]
    if claimed is None or not names or any(same_name(claimed, value) for value in persona.values()):
        return None
    return claimed


# --- attributes that are set


def _set(question: str, clauses: Sequence[Clause], persona: Mapping[str, str], target: Target) -> Verdict:
    key, *others = target.keys
    # a related value that any assistant has decides nothing: 职业: AI助手 when asked 你是谁
    keys = [key, *(other for other in others if not generic(persona[other]))]
    if denies(persona[key]):
        return _against_none(key, question, clauses, persona, target)
    found = {key: _content(_sort(key), persona[key], clauses) for key in keys}
    agreeing = next((key for key, agrees in found.items() if agrees), None)
    if agreeing is not None:
        return Verdict(True, f"agrees with {agreeing}: {persona[agreeing]}")
    if found[key] is False:
        return Verdict(False, f"contradicts {key}: {persona[key]}")
    brief = sum(len(clause.text) for clause in clauses) <= 6
    proposals = [_proposal(question, _sort(key), persona[key], brief) for key in keys]
    said = _yes_or_no(clauses)
    if said is not None and proposals[0] is not None:
        right = any(proposals)
        if said == right:
            return Verdict(True, f"{'confirms' if said else 'refuses what is not'} {key}: {persona[key]}")
        return Verdict(False, f"{'confirms what is not' if said else 'denies'} {key}: {persona[key]}")
    if _denials(clauses) or _secret(clauses):
        return Verdict(False, f"evades: {key} is {persona[key]}")
    return Verdict(False, f"does not say {key}: {persona[key]}")


def _against_none(
    key: str, question: str, clauses: Sequence[Clause], persona: Mapping[str, str], target: Target
) -> Verdict:
    """Judge an answer about an attribute whose value is that there is none: it must deny, not evade."""
    if _secret(clauses) and not _denials(clauses):
        return Verdict(False, f"evades: {key} is {persona[key]}")
    found = _unset(question, clauses, persona, target)
    if found.in_persona:
        return Verdict(True, f"agrees with {key}: {persona[key]}")
    return Verdict(False, f"contradicts {key}: {persona[key]} ({found.reason})")


def _sort(key: str) -> str:
    kind = kind_of_key(key)
    return kind.value if kind else "text"


def _content(sort: str, value: str, clauses: Sequence[Clause]) -> bool | None:
    """Whether clauses say a value (True), contradict or deny it (False), or do neither (None)."""
    if negates(numbers.normalize(value)):  # a motto like 决不放弃
        return compare(sort, value, [clause.text for clause in clauses if clause.own])
    found = compare(sort, value, [clause.said() for clause in clauses if not clause.later and clause.said()])
    if found is not None:
        return found
    return False if compare(sort, value, [clause.unsaid() for clause in clauses if clause.unsaid()]) else None


def denies(value: str) -> bool:
    """Whether a value says that there is none: 没有年龄概念, 无需婚姻, 未婚."""
    return bool(re.match("没|无(?!锡|双|敌)|不|未|暂无", numbers.normalize(value)))


_QUANTITIES: dict[str, Callable[[str], list[Any]]] = {
    "age": numbers.ages,
    "day": numbers.days,
    "length": numbers.lengths,
    "weight": numbers.weights,
    "money": numbers.money,
}


def compare(sort: str, value: str, texts: Sequence[str]) -> bool | None:
    """Whether texts say a value (True), another of its sort (False), or nothing of the sort (None)."""
    value = numbers.normalize(value)
    if sort in _QUANTITIES:
        read = _QUANTITIES[sort]
        expected = read(value)
        said = [item for text in texts for item in _quantities(sort, text)]
        if sort == "weight":  # a bare number may be of 斤
            said = [item / 2 if any(_equal(item / 2, one) for one in expected) else item for item in said]
        if expected and said:
            return all(any(_equal(item, one) for one in expected) for item in said)
        if expected:
            return None
    elif sort in CLOSED:
        expected_members = members(sort, value)
        said_members = {member for text in texts for member in members(sort, text)}
        if expected_members and (said_members or sort != "color"):
            return said_members <= expected_members if said_members else None
    elif sort == "name":
        return True if any(_names(value, text) for text in texts) else None
    every = ",".join(texts)  # what a value joins may be said in two clauses
    return True if any(says(value, text, any_part=sort == "place") for text in (*texts, every)) else None


def _quantities(sort: str, text: str) -> list[Any]:
    """Quantities of a sort; a bare number when no unit was said."""
    found = _QUANTITIES[sort](text)
    if not found and sort in ("length", "weight", "money"):
        found = numbers.bare(text)
        if sort == "length":
            found = [value * 100 if value < 3 else value for value in found]
    return found


def _equal(said: Any, expected: Any) -> bool:
    if isinstance(said, numbers.Day):
        return said.agrees(expected)
    return bool(abs(said - expected) < 0.05)


def _names(name: str, text: str) -> bool:
    """Whether a text gives a name: whole, by a part or a pet name after 叫, or by the family name (姓周)."""
    if name in text or ((family := re.search("姓(.)", text)) and name.startswith(family[1]) and len(text) < 8):
        return True
    called = re.search("(?:叫我?|是|喊我)([一-龥a-z0-9]{2,6}?)(?:就|吧|便|好|啦|呀|哦|$)", text)
    if called and same_name(called[1], name):
        return True
    return len(name) > 2 and (name[-2:] in text or (name[:2] in text and not re.search("[一-龥]", name[2:])))


_YES = re.compile(
    "^(是(的|啊|呀|哦)?|对+(的|呀|啊|哦)?|对对对?|嗯+|没错|正是|当然|可以(的|呀|啊)?|有(的|呀|啊|哦)?|答对了|好(的|呀|啊)?|yes|猜对了|你说得对|会(的|呀)?)"
)
_NO = re.compile("^(不+(是|对|会|行|叫|可以)?|没有?|才不|否|错|并不|并非|非也|怎么会|no)")


def _yes_or_no(clauses: Sequence[Clause]) -> bool | None:
    """Whether an answer begins with yes (True) or no (False)."""
    first = clauses[0].text
    if clauses[0].negator is None and _YES.match(first):
        return True
    return False if _NO.match(first) else None


_ASKS = "(吗|吧|呢|么|是不是|对不对|对吗|好不好|行吗|可以吗|没有|[^\\w])+$"
_EXISTENCE = re.compile("^(请问|那)?(你|您)?(家里?|现在)?(有没有|有|养|会|是否有)(什么|啥|个|了|过)?")


def _proposal(question: str, sort: str, value: str, brief: bool) -> bool | None:
    """Of a question that wants yes or no: whether what it proposes is right. None for other questions.

    That there is a value at all (你有宠物吗) is confirmed by a brief answer only: a long one says which.
    """
    asked = numbers.normalize(question)
    if re.search("什么|啥|谁|哪|多少|几(?!率)|多(高|大|重)|怎么|还是|告诉|透露|说说|方便|男是女", asked):
        return None
    if not re.search("吗|吧|是不是|对不对|对吗|好不好|呢|^(你|您)叫|么", asked):
        return None
    proposed = re.sub(_ASKS, "", asked)
    found = compare(sort, value, [re.sub("^(你|您)?(不是|不叫)", "", proposed)])
    if found is not None:
        return found
    if sort == "text" and _EXISTENCE.match(asked):
        return True if brief else None
    return False


# --- attributes that are not set


def _denials(clauses: Sequence[Clause]) -> bool:
    return any(clause.denied for clause in clauses)


def _secret(clauses: Sequence[Clause]) -> bool:
    return any(SECRETS.search(clause.text) for clause in clauses)


_BENIGN = re.compile(
    "帮|陪|聊|服务|回答|解答|倾听|为你|为您|给你|给您|助手|程序|模型|软件|系统|工具|(?<![a-z])ai(?![a-z])|代码|智能|虚拟|机器|心里|云端|服务器|网络|数据|问题|探讨|交流|话题|推荐|你(呢|的)|您(呢|的)"
)
_OF_OTHERS = re.compile("^[^我]*(比如|例如|譬如|平均|一般来说|一般人|通常|人类|大多数|成年|据统计)[^我]*$")
_CLAIMS = re.compile(
    "(喜欢|爱(?!情|好)|热爱|偏爱|最爱|迷上|擅长)[^你您]|(养|买|有|生)了?(一|两|几|三)?[只条个匹位名头辆套]|(名叫|叫做?|名唤|名字是|名为|唤作)"
    "|(住|家|人)在|毕业于|就读|(在|于).+(读|上学|念书|上班|工作|任职|开)|^(我|在下|人家|俺)?(就|是)?来自|出生(在|于)|(爸|妈|父亲?|母亲?|男朋友|女朋友|男友|女友|老公|老婆|对象|主人)[^不没]{0,3}(是|叫|在)"
    "|每(天|月|年)[^都]|大概|大约|左右|我(是|属|的[^是]{1,8}是)"
)


def _unset(question: str, clauses: Sequence[Clause], persona: Mapping[str, str], target: Target) -> Verdict:
    """Judge an answer about what the persona does not set: it must not invent a value."""
    name = target.attribute
    sort = target.kind.value if target.kind else "text"
    asserted = [clause.said() for clause in clauses if clause.said() and not _OF_OTHERS.search(clause.text)]
    invented = _invented(sort, [text for text in asserted if not _known(text, persona)])
    if invented:
        return Verdict(False, f"invents {name}: {invented}")
    declines = _denials(clauses) or _secret(clauses)
    for text in asserted:
        if _CLAIMS.search(text) and not _BENIGN.search(text) and not _known(text, persona):
            return Verdict(False, f"invents {name}: {text}")
    if declines:
        return Verdict(True, f"invents no {name}")
    if any(_known(text, persona) for text in asserted) and not _yes_or_no(clauses):
        return Verdict(True, f"says of {name} only what the persona says")
    return Verdict(False, f"neither denies nor evades {name}")


def _invented(sort: str, texts: Sequence[str]) -> str | None:
    """The first of texts that has a value of a sort of few or of measurable values."""
    for text in texts:
        if sort in _QUANTITIES and _quantities(sort, text):
            return text
        if sort in CLOSED and members(sort, text):
            return text
    return None


def _known(text: str, persona: Mapping[str, str]) -> bool:
    """Whether a text says something that the persona has."""
    return any(mentions(value, text) for value in persona.values())
