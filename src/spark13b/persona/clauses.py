"""An answer cut into clauses, each with its polarity: said of oneself, denied, or only reported of others."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spark13b.persona.numbers import normalize

# these have a negating sign in them and negate nothing
_IDIOMS = re.compile(
    "不过(?!$)|不错|没错|不仅|不但|不光|不止|不只|差不多|没问题|没关系|不好意思|不得了|了不起|无论|不论|不管|不知道为什么|不知道为啥|不知为何|无比|不瞒"
    "|对不对|是不是|好不好|能不能|要不要|会不会|有没有|不要紧|没什么大不了|不断|不由|忍不住|不禁|无限|无数|不用客气|不客气|未来|未免|离不开"
    "|谁说不是|不愧|毫不犹豫|不亦乐乎|无非|不同|不少|不久|不停|不妨|不得不|不可思议|无聊|无敌|永不|从不[^知说]"
)
_NEGATORS = re.compile("不|没|无|未|并非|绝非|非也|别(叫|说|问|提|想)|哪有|哪能|才怪|忘|拒绝")
_SEPARATORS = re.compile(r"[,。！!?？;；、\n~…:()]+|(?<=[^\s])(?=但是|但|不过|可是|其实|而是|然而|反而)")
_NOT_BUT = re.compile(r"(不是|并非|不叫)([^,。;!?是叫]{1,10})(是|叫)")
_CONTRAST = re.compile("^(但是?|不过|可是?|其实|而是|然而|反而|实际上|事实上|才不|我明明)")
_BELIEVED = re.compile("以为|误以为|猜我|猜是|误认|冒充|假装|谣传")
_REPORTED = re.compile(
    "(有人|别人|人家|他们|很多人|大家|有些人|朋友)(们)?(都|总|常|老|还)?(说|觉得|认为|问)|看起来|看上去"
)
_OTHER_TIME = re.compile(
    "过了年|再过|明年|后年|下个月|下月|下周|去年|前年|以前|从前|年轻(的时候|时)|小时候|当年|等到|将来|马上就|快要?(?=[0-9一二三四五六七八九十]+岁?了)"
)
SECRETS = re.compile(
    "秘密|保密|隐私|机密|你猜|猜猜|无可奉告|下次再|改天再|随便|谁在意|谁知道|转移话题|换个话题|抱歉|对不起"
)


@dataclass(frozen=True, slots=True)
class Clause:
    """A clause: its text and the place of its negator, if it has one.

    `own` is false for what only others believe; `later` is true for what holds at another time.
    """

    text: str
    negator: int | None
    own: bool
    later: bool = False

    @property
    def denied(self) -> bool:
        """Whether something in it is denied."""
        return self.negator is not None

    def said(self) -> str:
        """The part that is asserted: all of it, or what stands before the negator."""
        if not self.own:
            return ""
        return self.text if self.negator is None else self.text[: self.negator]

    def unsaid(self) -> str:
        """The part that is denied or only believed."""
        if not self.own:
            return self.text
        return "" if self.negator is None else self.text[self.negator :]


def negates(text: str) -> bool:
    """Whether a text has a negator in it."""
    return bool(_NEGATORS.search(text))


def clauses_of(answer: str) -> list[Clause]:
    """Cut an answer into its clauses."""
    text = re.sub(r"[“”\"'‘’《》「」『』【】*#`]", "", normalize(answer))
    text = re.sub(r"(?<=[0-9])\.(?=[0-9])", "\0", text).replace(".", "。").replace("\0", ".")
    text = _NOT_BUT.sub(r"\1\2,\3", text)
    parts = [part for part in _SEPARATORS.split(text) if part]
    found: list[Clause] = []
    for at, part in enumerate(parts):
        contrasted = at + 1 < len(parts) and any(_CONTRAST.search(later) for later in parts[at + 1 : at + 3])
        own = not _BELIEVED.search(part) and not (contrasted and _REPORTED.search(part))
        negator = _NEGATORS.search(_IDIOMS.sub(lambda idiom: "_" * len(idiom[0]), part))
        found.append(Clause(part, negator.start() if negator else None, own, bool(_OTHER_TIME.search(part))))
    return found
