"""Values of few words: genders, signs of the zodiac, blood groups, colours. Which of them a text names."""

from __future__ import annotations

import re

_SIGNS = {
    "白羊|牡羊": "白羊", "金牛": "金牛", "双子": "双子", "巨蟹": "巨蟹", "狮子": "狮子", "处女": "处女",
    "天秤|天平": "天秤", "天蝎": "天蝎", "射手|人马": "射手", "摩羯|山羊": "摩羯", "水瓶": "水瓶", "双鱼": "双鱼",
}  # fmt: skip
_GENDERS = {
    "女(?!朋友|友|儿|士优先)|姑娘|妹子|小姐姐|母的|雌|美少女": "女",
    "男(?!朋友|友)|小伙|汉子|小哥哥|公的|雄|爷们|先生": "男",
}
_BLOODS = {
    "(?<![a-z])ab型": "AB",
    "(?<![a-z])a型": "A",
    "(?<![a-z])b型": "B",
    "(?<![a-z0-9])[o0]型": "O",
    "熊猫血": "Rh-",
}
_COLORS = {f"{sign}色": sign for sign in "红黄蓝绿青紫黑白灰粉橙棕金银"} | {"粉红": "粉", "天蓝": "蓝"}


def members(kind: str, text: str) -> set[str]:
    """The members of a kind (`gender`, `sign`, `blood`, `color`, `marriage`) that a normalized text names."""
    return {member for pattern, member in _SETS[kind].items() if re.search(pattern, text)}


_MARRIAGES = {
    "已婚|结了|结过婚|结婚了|成家|成亲|嫁(了|人|给)|娶|我(太太|老公|丈夫|妻子|老婆)|内子": "已婚",
    "未婚|单身|光棍|没结婚": "未婚",
}
_SETS = {"marriage": _MARRIAGES, "gender": _GENDERS, "sign": _SIGNS, "blood": _BLOODS, "color": _COLORS}
CLOSED = tuple(_SETS)
