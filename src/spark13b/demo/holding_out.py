"""Choosing the questions that training never sees, so that answering them is more than remembering them."""

from __future__ import annotations

import random
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from spark13b.demo.prompt import KINDS, LANGUAGES, Prompt

_SEPARATOR = "\n"  # no normal form holds one


def normal_form(text: str) -> str:
    """`text` without case, width, spaces and punctuation: two questions with one normal form are the same question.

    Of the signs only `+ - =` and the `?` of `3+5=?` stay, without which this would be the beginning of `3+5=8`. Two
    numbers stay apart: `1? 0` is not `10`.
    """
    kept = ""
    apart = False
    for character in unicodedata.normalize("NFKC", text).casefold():
        if character.isalnum() or character in "+-=" or (character == "?" and kept.endswith("=")):
            if apart and character.isdigit() and kept[-1:].isdigit():
                kept += " "
            kept += character
            apart = False
        else:
            apart = True
    return kept


def hold_out(
    prompts: Sequence[Prompt], texts: Iterable[str], count: int, commuted: Sequence[str], draw: random.Random
) -> list[Prompt]:
    """Choose `count` prompts of each kind and language, in that order.

    A chosen prompt's normal form occurs once in all prompts and `texts` together, not even as a part of another; no
    two of a language share their first part, so that nearly all wordings of each subject stay in training; topics take
    turns. The sums in `commuted` come first, one wording each. Raises ValueError when the prompts are too few.
    """
    everything = _SEPARATOR.join(map(normal_form, [*(prompt.instruction for prompt in prompts), *texts]))
    chosen: list[Prompt] = []
    for kind in KINDS:
        for language in LANGUAGES:
            topics: dict[str, list[Prompt]] = defaultdict(list)
            for prompt in prompts:
                if (prompt.kind, prompt.language) == (kind, language):
                    topics[prompt.parts[0] if prompt.parts[0] in commuted else prompt.topic].append(prompt)
            for candidates in topics.values():
                draw.shuffle(candidates)
            found: list[Prompt] = []
            for topic in commuted:
                _take(topics.pop(topic, []), found, everything)
            while len(found) < count:
                before = len(found)
                for candidates in topics.values():
                    if len(found) < count:
                        _take(candidates, found, everything)
                if len(found) == before:
                    raise ValueError(f"only {before} of {count} questions of {kind}/{language} can be held out")
            chosen += found
    return chosen


def _take(candidates: list[Prompt], found: list[Prompt], everything: str) -> None:
    """Move the last candidate that may be held out to `found`; drop those before it that may not."""
    while candidates:
        prompt = candidates.pop()
        if prompt.parts[0] not in {other.parts[0] for other in found}:
            form = normal_form(prompt.instruction)
            if everything.count(form) == 1:
                found.append(prompt)
                return
