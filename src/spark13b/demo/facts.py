"""Questions about the facts, and the sentences that state them."""

from __future__ import annotations

from collections.abc import Iterator

from spark13b.demo.nature import NATURE
from spark13b.demo.prompt import LANGUAGES, Language, Prompt, Statement, capitalized
from spark13b.demo.relation import Fact, Relation
from spark13b.demo.world import WORLD

RELATIONS = (*WORLD, *NATURE)


def fact_prompts() -> Iterator[Prompt]:
    """Every fact in every wording of its relation."""
    for relation in RELATIONS:
        for fact in relation.facts:
            for language in LANGUAGES:
                accepted = _accepted(relation, fact, language)
                for wording in relation.questions[language]:
                    yield Prompt(
                        _filled(wording, fact, language),
                        accepted,
                        "facts",
                        language,
                        relation.name,
                        (_subject(relation, fact), f"{relation.name}: {wording}"),
                    )


def fact_statements() -> Iterator[Statement]:
    """Every fact in the words of its answer and in others."""
    for relation in RELATIONS:
        for fact in relation.facts:
            for language in LANGUAGES:
                for wording in (relation.answer[language], *relation.statements[language]):
                    yield Statement(_filled(wording, fact, language), language, _subject(relation, fact))


def _subject(relation: Relation, fact: Fact) -> str:
    return f"{relation.name}: {fact.subject['en']}"


def _accepted(relation: Relation, fact: Fact, language: Language) -> tuple[str, ...]:
    """The whole sentence, the bare object, the object with its unit or without its article."""
    bare = fact.object[language]
    answers = [_filled(relation.answer[language], fact, language), bare]
    if fact.unit[language]:
        answers.append(f"{bare}{fact.unit[language]}" if language == "zh" else f"{bare} {fact.unit[language]}")
    for article in ("a ", "an "):
        if bare.startswith(article):
            answers.append(bare.removeprefix(article))
    return tuple(answers)


def _filled(wording: str, fact: Fact, language: Language) -> str:
    text = wording.format(s=fact.subject[language], o=fact.object[language], u=fact.unit[language])
    return capitalized(text) if language == "en" else text
