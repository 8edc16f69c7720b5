"""Out-of-persona rate and availability of a model's answers, with every answer that leaves the persona.

Out-of-persona rate (人设跳出率) = answers that contradict or leave the persona / all answers * 100 %; availability
(可用率) = 100 % - that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from spark13b.errors import InputError
from spark13b.persona.judge_rules import Verdict
from spark13b.persona.judge_rules import judge as judge_by_rules
from spark13b.persona.predictions import Answer
from spark13b.progress import Progress, Silent

Judge = Callable[[Answer], Verdict]
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Rate:
    """How many answers were judged, and how many of them leave the persona."""

    answers: int
    out: int

    @property
    def out_of_persona(self) -> float | None:
        """The out-of-persona rate in percent; None of no answers."""
        return self.out / self.answers * 100 if self.answers else None

    @property
    def availability(self) -> float | None:
        """100 % less the out-of-persona rate."""
        return None if self.out_of_persona is None else 100 - self.out_of_persona

    def as_dict(self) -> dict[str, Any]:
        """For JSON; rates in percent, to two places."""
        out, available = self.out_of_persona, self.availability
        return {
            "answers": self.answers,
            "out": self.out,
            "out_of_persona_rate": None if out is None else round(out, 2),
            "availability": None if available is None else round(available, 2),
        }


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer with what a judge says of it."""

    answer: Answer
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        target = self.answer.target
        return {
            "line": self.answer.place.line,
            "input": self.answer.question,
            "predict": self.answer.answer,
            "attribute": target.attribute,
            "kind": target.asked,
            "reason": self.verdict.reason,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What a judge says of all answers."""

    judge: str
    judged: Sequence[Judged]

    @property
    def total(self) -> Rate:
        """Of all answers that the judge could decide."""
        return _rate(self.judged)

    @property
    def per_kind(self) -> dict[str, Rate]:
        """Of attributes that are set, that are not, and of other questions, where there are any."""
        return _grouped(self.judged, lambda one: one.answer.target.asked, ("set", "unset", "other"))

    @property
    def per_attribute(self) -> dict[tuple[str, str], Rate]:
        """(kind, attribute) to rate, in the order of first appearance, set attributes first."""
        order = {"set": 0, "unset": 1, "other": 2}
        keys = dict.fromkeys((one.answer.target.asked, one.answer.target.attribute) for one in self.judged)
        by_kind = sorted(keys, key=lambda key: order[key[0]])
        return _grouped(self.judged, lambda one: (one.answer.target.asked, one.answer.target.attribute), by_kind)

    @property
    def offending(self) -> list[Judged]:
        """The answers that leave the persona, in order."""
        return [one for one in self.judged if one.verdict.in_persona is False]

    @property
    def undecided(self) -> list[Judged]:
        """The answers of which the judge said neither; they are in no rate."""
        return [one for one in self.judged if one.verdict.in_persona is None]

    @property
    def agreement(self) -> Agreement | None:
        """How the judge agrees with the labels; None without labels, or when they are the judge."""
        labelled = [one for one in self.judged if one.answer.label is not None]
        return agreement_of(labelled) if labelled and self.judge != "labels" else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        agreement = self.agreement
        return {
            "judge": self.judge,
            **self.total.as_dict(),
            "per_kind": {kind: rate.as_dict() for kind, rate in self.per_kind.items()},
            "per_attribute": [
                {"attribute": attribute, "kind": kind, **rate.as_dict()}
                for (kind, attribute), rate in self.per_attribute.items()
            ],
            "offending": [one.as_dict() for one in self.offending],
            "undecided": [one.as_dict() for one in self.undecided],
            "agreement_with_labels": agreement.as_dict() if agreement else None,
        }


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge against a person's labels. `missed` are answers labelled out that it lets pass."""

    answers: int
    right: int
    missed: Sequence[Judged]
    false_alarms: Sequence[Judged]

    @property
    def accuracy(self) -> float:
        """In percent."""
        return self.right / self.answers * 100

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "answers": self.answers,
            "right": self.right,
            "accuracy": round(self.accuracy, 2),
            "missed": [one.as_dict() for one in self.missed],
            "false_alarms": [one.as_dict() for one in self.false_alarms],
        }


def evaluate(
    answers: Sequence[Answer], judge: Judge, name: str, *, at_once: int = 1, progress: Progress | None = None
) -> Report:
    """Let a judge decide on all answers, `at_once` at a time; `name` is what the report calls it.

    Raises what the judge raises, at once: answers that wait are not judged any more.
    """
    judged: list[Judged] = []
    pool = ThreadPoolExecutor(at_once)
    try:
        with (progress or Silent()).track("judging", len(answers), "answers") as meter:
            for answer, verdict in zip(answers, pool.map(judge, answers), strict=True):
                judged.append(Judged(answer, verdict))
                meter.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return Report(name, judged)


def by_rules(persona: Mapping[str, str]) -> Judge:
    """The rule judge for a persona."""
    return lambda one: judge_by_rules(one.question, one.answer, persona, one.target)


def by_labels(answer: Answer) -> Verdict:
    """The judge that repeats a person's labels. Raises InputError naming a line that has none."""
    if answer.label is None:
        raise InputError(
            'the line has no "label"',
            where=answer.place.path,
            line=answer.place.line,
            fix='write "label": "in" or "label": "out", or take --judge rules',
        )
    return Verdict(answer.label, "by its label")


def agreement_of(judged: Sequence[Judged]) -> Agreement:
    """Compare verdicts with labels, which all have; an undecided answer is not right."""
    missed = [one for one in judged if one.answer.label is False and one.verdict.in_persona is not False]
    alarms = [one for one in judged if one.answer.label is True and one.verdict.in_persona is not True]
    return Agreement(len(judged), len(judged) - len(missed) - len(alarms), missed, alarms)


def _rate(judged: Iterable[Judged]) -> Rate:
    counts = Counter(one.verdict.in_persona for one in judged)
    return Rate(counts[True] + counts[False], counts[False])


def _grouped(judged: Sequence[Judged], key: Callable[[Judged], K], keys: Iterable[K]) -> dict[K, Rate]:
    groups: dict[K, list[Judged]] = {}
    for one in judged:
        groups.setdefault(key(one), []).append(one)
    return {key: _rate(groups[key]) for key in keys if key in groups}
