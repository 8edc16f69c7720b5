"""An evaluation as a Markdown page: rates, per kind and per attribute, and every answer that leaves the persona."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spark13b.persona.evaluation import Agreement, Judged, Rate, Report

_KINDS = {"set": "attribute set", "unset": "attribute not set", "other": "other question"}


def kind_title(kind: str) -> str:
    """What a kind of question is called in reports."""
    return _KINDS[kind]


def markdown(report: Report) -> str:
    """The whole page."""
    total = report.total
    parts = [
        "# Persona evaluation",
        f"Out-of-persona rate (人设跳出率) **{percent(total.out_of_persona)}**, availability (可用率)"
        f" **{percent(total.availability)}**: {total.out} of {total.answers} answers leave the persona"
        f" (judge: {report.judge}).",
        _table(
            ("questions about", "answers", "out of persona", "rate", "availability"),
            [(kind_title(kind), *_cells(rate)) for kind, rate in report.per_kind.items()],
        ),
        "## Per attribute",
        _table(
            ("attribute", "kind", "answers", "out of persona", "rate", "availability"),
            [(attribute, kind, *_cells(rate)) for (kind, attribute), rate in report.per_attribute.items()],
        ),
        "## Answers that leave the persona",
        _answers(report.offending),
    ]
    if report.undecided:
        parts += ["## Answers without a verdict", "They are in no rate.", _answers(report.undecided)]
    if report.agreement is not None:
        parts += ["## The judge against the labels", agreement_line(report.agreement)]
        parts += [_answers([*report.agreement.missed, *report.agreement.false_alarms])]
    return "\n\n".join(parts) + "\n"


def percent(value: float | None) -> str:
    """A rate as it is shown; a dash of no answers."""
    return "-" if value is None else f"{value:.1f} %"


def agreement_line(agreement: Agreement) -> str:
    """How a judge agrees with labels, in one line."""
    return (
        f"judge agrees with {agreement.right} of {agreement.answers} labels ({agreement.accuracy:.1f} %); "
        f"{len(agreement.missed)} missed, {len(agreement.false_alarms)} false alarms"
    )


def _cells(rate: Rate) -> tuple[str, ...]:
    return str(rate.answers), str(rate.out), percent(rate.out_of_persona), percent(rate.availability)


def _answers(judged: Sequence[Judged]) -> str:
    if not judged:
        return "None."
    rows = [
        (
            str(one.answer.place.line),
            one.answer.question,
            one.answer.answer,
            one.answer.target.attribute,
            one.verdict.reason,
        )
        for one in judged
    ]
    return _table(("line", "question", "answer", "attribute", "reason"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """A text in one cell: what Markdown or HTML would read as more than text is escaped."""
    text = " ".join(text.split())
    for sign in "\\|`*_[]":
        text = text.replace(sign, "\\" + sign)
    return text.replace("&", "&amp;").replace("<", "&lt;")
