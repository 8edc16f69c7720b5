"""`spark13b persona questions` and `persona eval`: ask about a persona, and judge the answers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spark13b.cli import console, options
from spark13b.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from spark13b.persona.evaluation import Judge, Judged, Report

Attribute = Annotated[
    Path, typer.Option("--attribute", metavar="FILE", help="attribute.json: the persona.", show_default=False)
]
KEYS = ("SPARK13B_JUDGE_API_KEY", "OPENAI_API_KEY")  # the first that is set


class Purpose(StrEnum):
    """What questions are for."""

    test = "test"
    train = "train"


class JudgeName(StrEnum):
    """Who judges."""

    rules = "rules"
    openai = "openai"
    labels = "labels"


def questions(
    attribute: Attribute,
    purpose: Annotated[Purpose, typer.Option("--for", help="Wordings: no test wording is a training one.")] = (
        Purpose.test
    ),
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write here instead of to stdout.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Make questions about what a persona sets, and about what it does not, in several wordings each.

    Prints JSON Lines of {"input", "attribute", "kind": "set" or "unset"}, ready for 'spark13b infer --prompt-file'.
    """
    import json

    from spark13b.files import check_writable_file, write_text
    from spark13b.persona.attributes import read_attributes
    from spark13b.persona.questions import questions_about

    if output is not None:
        check_writable_file(output, force=force, inputs=(attribute,))
    made = questions_about(read_attributes(attribute), purpose.value)
    lines = "".join(json.dumps(one.as_dict(), ensure_ascii=False) + "\n" for one in made)
    known = sum(one.kind == "set" for one in made)
    counts = {"questions": len(made), "set": known, "unset": len(made) - known}
    if output is not None:
        write_text(output, lines, force=force)
    if as_json:
        console.print_json({**counts, "records": [one.as_dict() for one in made]} if output is None else counts)
    elif output is None:
        print(lines, end="")
    else:
        print(f"{output}: {len(made)} questions, {known} about what is set, {len(made) - known} about what is not")


def evaluate(
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE", help='Answers, JSON Lines: {"input": "...", "predict": "..."}.'),
    ] = None,
    attribute: Annotated[
        Path | None, typer.Option("--attribute", metavar="FILE", help="attribute.json: the persona.")
    ] = None,
    judge: Annotated[
        JudgeName,
        typer.Option("--judge", help='rules, a model (openai), or the "label" of each line: "in" or "out".'),
    ] = JudgeName.rules,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="Of the model that judges, as http://127.0.0.1:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of the model that judges.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests at once to that model.")] = 4,
    check: Annotated[
        bool, typer.Option("--check", help="Measure the judge itself, on the labelled answers that come with spark13b.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the report here, as JSON.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the report here, as Markdown.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Judge answers to questions about a persona: out-of-persona rate, availability, and every offending answer.

    A set attribute must be answered with its value, one that is not set must not be invented, and nobody may claim to
    be somebody else. The key of an 'openai' judge comes from SPARK13B_JUDGE_API_KEY or OPENAI_API_KEY.
    """
    if judge is JudgeName.openai and not (base_url and model):
        raise InputError("no model was given to judge", fix="add --base-url URL and --model NAME")
    if judge is not JudgeName.openai and (base_url or model):
        raise InputError(
            f"--judge {judge} asks no model", fix="add --judge openai, or leave --base-url and --model out"
        )
    if check:
        if predictions or attribute or markdown or output or judge is JudgeName.labels:
            raise InputError(
                "--check measures a judge on answers of its own",
                fix="leave --predictions, --attribute, --output and --markdown out; --judge rules or openai",
            )
        _check(judge, base_url, model, concurrency, as_json)
        return
    if predictions is None:
        raise InputError("no answers were given", fix="add --predictions FILE; 'spark13b infer' writes it")
    if attribute is None:
        raise InputError("no persona was given", fix="add --attribute attribute.json")

    from spark13b.files import check_writable_file
    from spark13b.persona.attributes import read_attributes
    from spark13b.persona.evaluation import evaluate
    from spark13b.persona.predictions import read_predictions

    if output is not None and output == markdown:
        raise InputError("--output and --markdown are the same file", where=output, fix="give two names")
    for target in (output, markdown):
        if target is not None:
            check_writable_file(target, force=force, inputs=(predictions, attribute))
    persona = read_attributes(attribute)
    answers = read_predictions(predictions, persona)
    with _judge(judge, persona, base_url, model) as judging:
        report = evaluate(
            answers, judging, judge.value, at_once=_at_once(judge, concurrency), progress=_progress(judge)
        )
    _write(report, output, markdown, force)
    if as_json:
        console.print_json(report.as_dict())
    else:
        _show(report)


@contextmanager
def _judge(name: JudgeName, persona: dict[str, str], base_url: str | None, model: str | None) -> Iterator[Judge]:
    """The judge of that name for a persona."""
    from spark13b.persona.evaluation import by_labels, by_rules

    if name is JudgeName.openai:
        from spark13b.persona.judge_openai import OpenAIJudge

        assert base_url is not None and model is not None  # checked at the start
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        with OpenAIJudge(persona, base_url, model, key) as asking:
            yield asking
    else:
        yield by_labels if name is JudgeName.labels else by_rules(persona)


def _at_once(judge: JudgeName, concurrency: int) -> int:
    return concurrency if judge is JudgeName.openai else 1


def _progress(judge: JudgeName) -> console.TerminalProgress | None:
    """Rules judge thousands of answers a second: nothing to watch."""
    return console.TerminalProgress() if judge is JudgeName.openai else None


def _write(report: Report, output: Path | None, markdown: Path | None, force: bool) -> None:
    import json

    from spark13b.files import write_text
    from spark13b.persona.report_markdown import markdown as page

    if output is not None:
        write_text(output, json.dumps(report.as_dict(), ensure_ascii=False, indent=2) + "\n", force=force)
    if markdown is not None:
        write_text(markdown, page(report), force=force)


def _show(report: Report) -> None:
    """The rates as a table, the offending answers below it."""
    from rich.table import Table

    from spark13b.persona.report_markdown import agreement_line, kind_title, percent

    out = console.stdout()
    table = Table(box=None, pad_edge=False)
    for column in ("attribute", "answers", "out", "out of persona", "availability"):
        table.add_column(column, justify="left" if column == "attribute" else "right")
    for kind, rate in report.per_kind.items():
        table.add_row(
            f"[bold]{kind_title(kind)}[/bold]",
            *(str(rate.answers), str(rate.out), percent(rate.out_of_persona), percent(rate.availability)),
        )
        for (kind_of_it, name), one in report.per_attribute.items():
            if kind_of_it == kind:
                table.add_row(
                    f"  {_plain(name)}",
                    *(str(one.answers), str(one.out), percent(one.out_of_persona), percent(one.availability)),
                )
    out.print(table)
    if report.offending:
        out.print("\n[bold]answers that leave the persona[/bold]")
        _show_answers(out, report.offending)
    if report.undecided:
        out.print("\n[bold]answers without a verdict[/bold] (in no rate)")
        _show_answers(out, report.undecided)
    total = report.total
    out.print(
        f"\nout-of-persona rate (人设跳出率) [bold]{percent(total.out_of_persona)}[/bold], availability (可用率) "
        f"[bold]{percent(total.availability)}[/bold]: {total.out} of {total.answers} answers (judge: {report.judge})"
    )
    if report.agreement is not None:
        out.print(agreement_line(report.agreement))


def _show_answers(out: Console, judged: list[Judged]) -> None:
    for one in judged:
        place, answer = one.answer.place, one.answer
        out.print(f"line {place.line}: {_plain(answer.question)}\n  {_plain(' '.join(answer.answer.split()))}")
        out.print(f"  [red]{_plain(one.verdict.reason)}[/red]")


def _plain(text: str) -> str:
    """A text in which rich sees no markup, without control signs."""
    from rich.markup import escape

    return escape("".join(sign if sign.isprintable() else " " for sign in text))


def _check(judge: JudgeName, base_url: str | None, model: str | None, concurrency: int, as_json: bool) -> None:
    """Print how the judge agrees with the labels of each part."""
    from spark13b.persona.evaluation import agreement_of, evaluate
    from spark13b.persona.labelled_answers import PARTS, labelled_answers
    from spark13b.persona.report_markdown import agreement_line

    # a model sees no attribute: for it there is no difference
    variants = (False, True) if judge is JudgeName.rules else (False,)
    found = {}
    for part, named in itertools.product(PARTS, variants):
        judged: list[Judged] = []
        answers = list(labelled_answers(part, named=named))
        for persona in {tuple(persona.items()): persona for persona, _ in answers}.values():
            own = [answer for theirs, answer in answers if theirs == persona]
            with _judge(judge, persona, base_url, model) as judging:
                at_once, progress = _at_once(judge, concurrency), _progress(judge)
                judged += evaluate(own, judging, judge.value, at_once=at_once, progress=progress).judged
        found[part + "_named" * named] = agreement_of(judged)
    if as_json:
        console.print_json({name: agreement.as_dict() for name, agreement in found.items()})
        return
    out = console.stdout()
    for name, agreement in found.items():
        for title, wrong in (("missed", agreement.missed), ("false alarm", agreement.false_alarms)):
            for one in wrong:
                out.print(f"{title}: {_plain(one.answer.question)} | {_plain(one.answer.answer)}", highlight=False)
                out.print(f"  {_plain(one.verdict.reason)}")
        how = ", attribute named by the record" if name.endswith("_named") else ""
        print(f"{name.removesuffix('_named')}{how}: {agreement_line(agreement)}")
