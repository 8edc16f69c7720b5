"""What the tables of facts are made of.

In a wording `{s}` is the subject, `{o}` the object (what is asked for) and `{u}` a unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from spark13b.demo.prompt import Language


@dataclass(frozen=True, slots=True)
class Fact:
    """Subject, object and unit in both languages."""

    subject: dict[Language, str]
    object: dict[Language, str]
    unit: dict[Language, str]


@dataclass(frozen=True, slots=True)
class Relation:
    """What all facts of a kind share: the questions, the answer, and other sentences that state the fact."""

    name: str
    facts: tuple[Fact, ...]
    questions: dict[Language, tuple[str, ...]]
    answer: dict[Language, str]
    statements: dict[Language, tuple[str, ...]]


def facts(table: str) -> tuple[Fact, ...]:
    """Read `zh subject | en subject | zh object | en object [| zh unit | en unit]` lines."""
    found = []
    for line in table.strip().splitlines():
        zh_subject, en_subject, zh_object, en_object, *units = [cell.strip() for cell in line.split("|")]
        zh_unit, en_unit = units or ("", "")
        found.append(
            Fact(
                {"zh": zh_subject, "en": en_subject},
                {"zh": zh_object, "en": en_object},
                {"zh": zh_unit, "en": en_unit},
            )
        )
    return tuple(found)
