"""Whether a text says what a value says: by the pieces of the value that carry its meaning."""

from __future__ import annotations

import re
from functools import lru_cache

from spark13b.persona.numbers import normalize

_SEPARATORS = r"[、,，。;；.!！?？/|\n:()\"'“”《》·~]|[0-9]+\.(?![0-9])"
# what joins the pieces of a value, and what stands around them
_FILLERS = (
    "一(只|个|位|名|柄|条|把|匹|头|家|种|座|棵|间|辆|支|台|部|艘)|名叫|名为|叫做|叫|以及|还有|并且"
    "|的|和|与|是|有点|有些|有|很|非常|特别|比较|具有|具备|你|我|他|她|在|等"
)
# of all assistants and companies alike: a value is not said by these alone
_GENERIC = (
    "人工智能|大?语言模型|(?<![a-z])ai(?![a-z])|智能?助手|助手|模型|程序|机器人"
    "|(师范大学|大学|学院|中学|小学|有限公司|公司|集团|科技|工作室|网络|先生|小姐)$"
)


def says(value: str, text: str, *, any_part: bool = False) -> bool:
    """Whether a text (normalized) says a value, or one of the things that a value lists.

    A piece is said when at least half of its neighbouring pairs of signs are in the text; with `any_part`, one pair.
    """
    whole = _plain(value)
    if whole and whole in _plain(text):
        return True
    if _abbreviated(whole, text):
        return True
    told = _told(text)
    if len(told) > 1 and told in whole and not generic(told):
        return True
    for piece in _pieces(value):
        core = re.sub(_GENERIC, "|", piece)
        parts = [part for part in core.split("|") if len(part) > 1]
        pairs = {pair for part in parts for pair in _pairs(part)}
        if not pairs:  # nothing but generic words, or one sign
            if piece in text and (piece != core or len(piece) > 1 or len(text) <= 4):
                return True
            continue
        hits = sum(pair in text for pair in pairs)
        if hits and (any_part or hits * 2 >= len(pairs)):
            return True
        if len(piece) == 4 and piece == core and piece[:2] in text and piece[2:] in text:
            return True
        if len(piece) >= 3 and len(text) < 24 and not re.search(_GENERIC, piece) and set(piece) <= set(text):
            return True
    return False


def _told(text: str) -> str:
    """What a short clause tells: 团子 of 它叫团子呀."""
    text = re.sub("[呀啊哦呢啦吧哟喽咯的了]+$", "", text)
    return re.split("是|叫|号(?=.)|名为|名字|姓", text)[-1]


def mentions(value: str, text: str) -> bool:
    """Whether a text (normalized) says a value that is of this persona: not one sign, not a word of a long list."""
    return len(value) > 1 and not generic(value) and len(_pieces(value)) <= 2 and says(value, text)


def generic(value: str) -> bool:
    """Whether a value could be any assistant's: AI助手."""
    return all(len(part) < 2 for piece in _pieces(value) for part in re.sub(_GENERIC, "|", piece).split("|"))


@lru_cache(maxsize=4096)
def _pieces(value: str) -> list[str]:
    value = re.sub(_SEPARATORS, "|", normalize(value))
    return [piece for piece in re.sub(_FILLERS, "|", value).split("|") if piece]


def _pairs(piece: str) -> set[str]:
    if re.fullmatch("[a-z0-9-]+", piece):
        return {piece}
    return {piece[at : at + 2] for at in range(len(piece) - 1)}


def _plain(text: str) -> str:
    return re.sub(r"[^\w]", "", normalize(text))


def _abbreviated(value: str, text: str) -> bool:
    """Whether the text has three signs of an institution's name in a row and in order (山师大)."""
    institution = re.match(".*?(大学|学院|中学|公司|集团)", value)
    if institution is None:
        return False
    value = institution[0]
    for start in range(len(text) - 2):
        if text[start] == value[0]:
            at = 0
            for length, sign in enumerate(text[start : start + 6]):
                at = value.find(sign, at) + 1
                if not at:
                    break
                if length >= 2:
                    return True
    return False
