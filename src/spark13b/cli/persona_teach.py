"""`spark13b persona concat` and `persona extract`: training data of a persona, written by a teacher."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spark13b.cli import console, options
from spark13b.errors import InputError, JobError

if TYPE_CHECKING:
    from spark13b.persona.teacher import Drawing, Teacher

_HOW = "How the teacher is asked"


class TeacherName(StrEnum):
    """Who answers."""

    spark = "spark"
    openai = "openai"


def concat(
    template: Annotated[
        Path,
        typer.Option(
            "--template",
            metavar="FILE",
            help='Examples, JSON Lines: {"input": "...", "target": "..."}.',
            show_default=False,
        ),
    ],
    attribute: Annotated[Path, typer.Option("--attribute", metavar="FILE", help="The persona.")] = Path(
        "attribute.json"
    ),
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="A line for each example.")] = Path(
        "output.txt"
    ),
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Put a persona in front of every example: the lines that 'persona extract' asks a teacher with."""
    from spark13b.persona.concat import concat as write

    count = write(template, attribute, output, force=force)
    if as_json:
        console.print_json({"output": str(output), "lines": count})
    else:
        print(f"{output}: {count:,} lines")


def extract(
    input: Annotated[
        Path,
        typer.Option("--input", metavar="FILE", help="What 'persona concat' wrote, or --errors of an earlier run."),
    ] = Path("output.txt"),
    output: Annotated[
        Path,
        typer.Option("--output", metavar="FILE", help='The answers, JSON Lines: {"input": "...", "output": "..."}.'),
    ] = Path("qa_data.json"),
    errors: Annotated[
        Path | None,
        typer.Option(
            "--errors",
            metavar="FILE",
            help="The lines without an answer, and why \\[default: data_exception.json beside --output].",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        TeacherName, typer.Option("--teacher", help="The Spark web API, or an endpoint that speaks OpenAI's.")
    ] = TeacherName.spark,
    model: Annotated[
        str | None, typer.Option("--model", help="Its name \\[default: generalv3.5 of spark].", show_default=False)
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="The endpoint, as http://127.0.0.1:8000/v1.", show_default=False)
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option(
            "--credentials",
            metavar="FILE",
            help="NAME=value lines, mode 600, instead of the environment.",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=256, help="Questions at once.", rich_help_panel=_HOW)
    ] = 4,
    rate: Annotated[
        float, typer.Option("--rate", min=0, help="Tries a second, at most; 0: no limit.", rich_help_panel=_HOW)
    ] = 2,
    retries: Annotated[
        int,
        typer.Option("--retries", min=0, max=50, help="So often again, when busy or cut off.", rich_help_panel=_HOW),
    ] = 5,
    backoff: Annotated[
        float,
        typer.Option("--backoff", min=0.01, help="First pause before that, in seconds; doubles.", rich_help_panel=_HOW),
    ] = 1,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Longest silence in seconds.", rich_help_panel=_HOW)
    ] = 60,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=2, help="Of the teacher's draws.", rich_help_panel=_HOW)
    ] = 0.5,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest answer in tokens.", rich_help_panel=_HOW)
    ] = 2048,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Have a teacher answer every line: training data for 'spark13b preprocess sft'. Goes on where it stopped.

    The Spark web API's SPARK_APP_ID, SPARK_API_KEY and SPARK_API_SECRET, or the SPARK13B_TEACHER_API_KEY (else
    OPENAI_API_KEY) of an OpenAI endpoint, come from the environment or from --credentials.
    """
    from dataclasses import asdict

    from spark13b.persona.asking import Pace
    from spark13b.persona.extract import extract as run
    from spark13b.persona.teacher import Drawing

    drawing = Drawing(temperature, max_tokens)
    asked = _teacher(teacher, model, base_url, credentials, drawing, timeout)
    pace = Pace(concurrency, rate or None, retries + 1, backoff)
    errors = errors or output.parent / "data_exception.json"
    result = run(input, output, errors, asked, pace, force=force, progress=console.TerminalProgress())
    if as_json:
        console.print_json({"output": str(output), "errors": str(errors), "failed": result.failed, **asdict(result)})
    else:
        print(f"{output}: {result.answered:,} answers to {result.lines:,} lines")
        if result.failed:
            print(f"{errors}: {result.failed:,} lines without an answer")
            for reason, count in result.failures.items():
                print(f"  {count:,} x {reason}")
    if not result.answered:
        raise JobError("no line got an answer", where=errors, fix="see the reasons there; --force asks again")


def _teacher(
    name: TeacherName,
    model: str | None,
    base_url: str | None,
    credentials: Path | None,
    drawing: Drawing,
    timeout: float,
) -> Teacher:
    from spark13b.persona.credentials import openai_key, spark_credentials

    if name is TeacherName.spark:
        from spark13b.persona.spark_api import ADDRESS, SparkApi

        keys = spark_credentials(credentials)
        return SparkApi(keys, model or "generalv3.5", drawing, address=base_url or ADDRESS, timeout=timeout)
    from spark13b.persona.openai_teacher import OpenAITeacher

    if not (base_url and model):
        raise InputError("no endpoint was given", fix="add --base-url http://HOST:PORT/v1 and --model NAME")
    return OpenAITeacher(base_url, model, openai_key(credentials), drawing, timeout=timeout)
