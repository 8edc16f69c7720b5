"""Answers that claim to be somebody else: another assistant, another maker's model, somebody of another name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from spark13b.persona.clauses import Clause
from spark13b.persona.numbers import normalize

# as `normalize` leaves them: small letters
ASSISTANTS = (
    "chatgpt|gpt-?[0-9][a-z0-9.]*|gpt|openai|claude|anthropic|gemini|copilot|bing|siri|alexa|cortana|llama|mistral|grok"
    "|bard|文心一言|文心|百度|小度|通义千问|通义|千问|qwen|阿里云|阿里巴巴|阿里|天猫精灵|豆包|字节跳动|字节|腾讯|混元|智谱清言|智谱"
    "|chatglm"
    "|kimi|月之暗面|moonshot|deepseek|深度求索|讯飞星火|科大讯飞|讯飞|星火|百川|(?<!每)(?<!今)(?<!明)天工(?!作)|昆仑万维"
    "|360智脑|华为|小艺|小米公司|小爱同学|小爱|小冰|小娜|微软|谷歌|google|商汤|minimax|零一万物|阶跃星辰|apple|苹果公司|亚马逊|三星|bixby|小布|oppo|vivo"
)

_SELF = "我|本人|在下|俺|咱|人家|本姑娘|本公子"
_CLAIM = re.compile(
    rf"(?:(?:{_SELF})[^是叫由]{{0,4}}(?:是|叫|名叫|来自|由|属于|为)|^(?:是|作为|身为|由|叫)|名字(?:是|叫)|(?:作为|身为))"
    rf"(?P<gap>[^,。!?用喜欢跟和比说问]{{0,8}}?)(?P<who>{ASSISTANTS})"
)
_CALLED = re.compile(
    rf"(?:(?:{_SELF})(?:就|只|的?名字)?(?:叫做|名叫|叫|改名叫)|名字(?:是|叫做|叫)|改名为|改叫)(?P<who>[一-龥a-z0-9·]{{2,6}})"
)
_NO_NAME = re.compile("^(什么|啥|你|您|他|她|不|苦|做|做|只是|个|一个|我)")


def claimed_other(clauses: Iterable[Clause], values: Iterable[str]) -> str | None:
    """The assistant or maker that an answer claims to be or to be of, unless the persona's values name it."""
    own = normalize("\n".join(values))
    for clause in clauses:
        if not clause.own or clause.denied:
            continue
        for match in _CLAIM.finditer(clause.text):
            if match["who"] not in own:
                return match["who"]
    return None


def claimed_name(clauses: Iterable[Clause]) -> str | None:
    """The name that an answer gives itself: 我叫X, 我的名字是X."""
    for clause in clauses:
        if clause.own and not clause.denied and (match := _CALLED.search(clause.text)):
            name = re.sub("(就好|就行|便是|吧|啦|呀|哦|呢|就是了|就可以了?|了|啊|哟|喽)+$", "", match["who"])
            if name and not _NO_NAME.match(name):
                return name
    return None


def same_name(claimed: str, name: str) -> bool:
    """Whether a name is said in another way: with more around it, a part of two signs, 老周 or 阿离 or 小米粒."""
    claimed, name = normalize(claimed), normalize(name)
    if claimed in name:
        return len(claimed) > 1 or len(name) == 1
    if name in claimed:
        return True
    nick = re.fullmatch("[阿小老大]([一-龥]{1,2})", claimed)
    return bool(nick and nick[1] in name)
