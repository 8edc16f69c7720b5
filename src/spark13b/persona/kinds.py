"""What a persona can be asked about: the kinds of attribute, found by a key's names or by a question's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from spark13b.persona.numbers import NUMBER, normalize

Value = Literal[
    "text", "name", "place", "age", "day", "length", "weight", "money", "gender", "sign", "blood", "color", "marriage"
]
Asked = Literal["set", "unset", "other"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of attribute.

    `names` as in a persona file, joined by `|`; `cues` a regular expression that finds it in a question; `related`
    names of kinds whose value answers the same questions; `train` and `test` wordings of questions, disjoint.
    """

    names: str
    value: Value
    cues: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    related: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names.partition("|")[0]


@dataclass(frozen=True, slots=True)
class Target:
    """What a question is about: `attribute` a key of the persona file (`set`), or the name of a kind (`unset`).

    `keys` are all keys whose values answer it. `other` is a question that is not about the persona.
    """

    attribute: str
    asked: Asked
    kind: Kind | None = None
    keys: tuple[str, ...] = ()


UNKNOWN = "其他"  # a question about the persona that no kind fits
GENERAL = "一般"  # a question about the world


def names_of(key: str) -> list[str]:
    """The synonyms of a key of a persona file: `姓名|名字|称呼`."""
    return [name.strip() for name in key.split("|") if name.strip()]


@lru_cache(maxsize=4096)
def kind_of_key(key: str) -> Kind | None:
    """The kind of a persona file's key: one of its names is one of the kind's, or ends in a long one."""
    from spark13b.persona.catalogue import KINDS

    names = [normalize(name) for name in names_of(key)]
    for name in names:
        for kind in KINDS:
            if name in normalize(kind.names).split("|"):
                return kind
    for kind in KINDS:
        if any(name.endswith(known) for name in names for known in kind.names.split("|") if len(known) > 2):
            return kind
    return None


def keys_of(kind: Kind, persona: Iterable[str]) -> tuple[str, ...]:
    """The persona's keys that answer questions of a kind: its own first, then those of related kinds."""
    kinds = [(key, found) for key in persona if (found := kind_of_key(key)) is not None]
    own = [key for key, found in kinds if found is kind]
    return (*own, *(key for key, found in kinds if found is not kind and found.name in kind.related))


def target_of(question: str, persona: Mapping[str, str]) -> Target:
    """Find out what a question asks of a persona (its attributes: key to value)."""
    from spark13b.persona.catalogue import KINDS

    asked = normalize(question)
    for key in persona:
        if kind_of_key(key) is None and any(_names_key(name, asked) for name in names_of(key)):
            return Target(key, "set", None, (key,))
    if re.search(_REQUESTS, asked):
        return Target(GENERAL, "other")
    for key in persona:
        if _by_name(key).search(asked):
            return target_named(key, persona)
    for kind in KINDS:
        if _by_name(kind.names).search(asked):
            return target_of_kind(kind, persona)
    addressed = _addresses(asked, persona)
    brief = _SOFTENERS.sub("", asked)
    for kind in KINDS:
        cues = _compiled(kind.cues)
        if cues.search(asked) if addressed else _alone(cues, brief):
            return target_of_kind(kind, persona)
    return Target(UNKNOWN, "unset") if addressed else Target(GENERAL, "other")


def target_of_kind(kind: Kind, persona: Mapping[str, str]) -> Target:
    """The target of a question of this kind: the persona's key for it, or the kind's name when none is set."""
    keys = keys_of(kind, persona)
    return Target(keys[0], "set", kind, keys) if keys else Target(kind.name, "unset", kind)


def target_named(attribute: str, persona: Mapping[str, str]) -> Target:
    """The target that a record names itself: a key, one of a key's names, or the name of a kind."""
    for key in persona:
        if attribute == key or attribute in names_of(key):
            kind = kind_of_key(key)
            keys = (key, *(found for found in keys_of(kind, persona) if found != key)) if kind else (key,)
            return Target(key, "set", kind, keys)
    if attribute == GENERAL:
        return Target(GENERAL, "other")
    kind = kind_of_key(attribute)
    return target_of_kind(kind, persona) if kind else Target(attribute, "unset")


_ADDRESS = re.compile(
    "你|您|阁下|令[堂尊郎]|[尊贵]姓|贵庚|芳[龄名]|高寿|大名|自我介绍|生辰|[加留]个|[做当]我|嫁给我"
    "|大哥|大姐|大叔|大爷|大妈|嫂子|阿婆|阿姨|奶奶|爷爷|师傅|兄弟(?!姐)|姑娘|小家伙|小朋友|小机器人"
)
_POLITE = re.compile("你好(?!相)|您好|谢谢[你您]|^[你您](认为|觉得|知道)(?!自己|[你您])")
_SOFTENERS = re.compile(
    "^(请问|那么?|请|能|可以|方便|告诉我|说说|说一下|问一下|今年|现在|平时|平常|到底|大概|,|我|想知道)+"
)
_TOPICS = re.compile("的[^?]|怎么(?!样|称)|如何|需要|等于|应该|节|几种|是谁|世界|什么是|能吃")


def _addresses(question: str, persona: Mapping[str, str]) -> bool:
    """Whether a question speaks to the persona: by a pronoun, a polite word or its name."""
    names = [normalize(value) for key, value in persona.items() if (kind := kind_of_key(key)) and kind.value == "name"]
    return bool(_ADDRESS.search(_POLITE.sub("", question))) or any(name in question for name in names)


def _alone(cues: re.Pattern[str], question: str) -> bool:
    """Whether a question without an address is a short one that leaves it out: 几岁了, 有女朋友吗, 住在哪里."""
    if len(question) > 10 or _TOPICS.search(question):
        return False
    return any(cues.match(question, at) for at in range(min(4, len(question))))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of the catalogue: more of them than the cache of `re` holds."""
    return re.compile(pattern)


@lru_cache(maxsize=4096)
def _by_name(key: str) -> re.Pattern[str]:
    """What asks for one of a key's names itself: 你的身高是, 您的身高？, 你喜欢的颜色呢."""
    joined = "|".join(re.escape(normalize(name)) for name in names_of(key))
    return re.compile(rf"[你您]的?({joined})(?=[^\w]|是|吧|吗|呢|$)")


def _names_key(name: str, question: str) -> bool:
    """Whether a question names a key: its name, or 喜欢...X for a key 喜欢的X."""
    name = normalize(name)
    if len(name) == 1:
        return bool(re.search(f"(什么|啥|的|你|您|哪[一-龥]){re.escape(name)}", question))
    if name in question:
        return True
    verb, _, thing = name.partition("的")
    return bool(len(verb) > 1 and thing and re.search(f"{re.escape(verb[-2:])}.*{re.escape(thing)}", question))


_REQUESTS = (
    "^(请|麻烦)?(你|您)?(能|可以)?(帮我|给我|为我|替我|讲个|讲一个|写一|写首|写个|推荐|翻译|解释一下|订一|查一下)"
    "(?!(做|干|忙)?(些|点)?(什么|啥)|你|您)"
)

QUANTITY_CUES = {
    "length": rf"{NUMBER}(米|cm|厘米|公分)",
    "age": rf"{NUMBER}岁|有?{NUMBER}了?(吧|吗|没|没有)[^一-龥]*$|十几了|{NUMBER}(出头|好几)",
    "weight": rf"{NUMBER}(斤|公斤|kg)",
}
