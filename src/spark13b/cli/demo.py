"""`spark13b demo`: train a small model from nothing and let it answer."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spark13b.cli import console, options

if TYPE_CHECKING:
    from spark13b.demo.corpus import Question

app = typer.Typer(add_completion=False)


@app.command(epilog='Example: spark13b demo, then spark13b infer "你是谁？"')
def demo(
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder for everything \\[default: the user's data folder].", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same result.")] = 0,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """The whole life of a model in some minutes: corpus, tokenizer, rows, training, answers, another persona.

    What is there already is not made again; --force begins anew.
    """
    from spark13b.demo.corpus import is_right
    from spark13b.demo.run import DemoFiles, run_demo
    from spark13b.infer.session import demo_folder

    out = sys.stderr if as_json else sys.stdout

    def show(question: Question, pieces: Iterator[str]) -> str:
        print(f"\n  > {question.instruction}\n    ", end="", file=out, flush=True)
        answer = ""
        for piece in pieces:
            print(piece, end="", file=out, flush=True)
            answer += piece
        print("" if is_right(question, answer) else f"    (wrong: {question.accepted[0]})", file=out, flush=True)
        return answer

    def show_persona(question: str, before: str, after: str) -> None:
        print(f"\n  > {question}\n    before: {before}\n    after:  {after}", file=out, flush=True)

    folder = output or demo_folder()
    summary = run_demo(folder, seed, force, show, show_persona, progress=console.TerminalProgress())
    files = DemoFiles(folder)
    if as_json:
        console.print_json({**asdict(summary), "accuracy": summary.accuracy, "folder": str(folder)})
        return
    print(f"\n{summary.right} of {summary.questions} held-out questions right ({summary.accuracy:.0%})", end=": ")
    print(", ".join(f"{kind} {right}/{asked}" for kind, (right, asked) in summary.by_kind.items()))
    persona = summary.persona
    before, after = persona.rates
    print(
        f"another persona: {before:.0%} of {persona.asked} answers left it before, {after:.0%} after; "
        f"other questions right: {persona.right_before} of {persona.others} before, {persona.right_after} after"
    )
    print(f"{summary.parameters:,} parameters, {console.duration(summary.seconds)}")
    print(f"model:      {files.sft.path}\nloss curve: {files.sft.curve}\neverything: {folder}")
    command = "spark13b" if shutil.which("spark13b") else sys.argv[0]
    load = "" if output is None else f" --load {files.sft.path}"
    print(f'\nAsk it yourself: {command} infer "你是谁？"{load}')
    print(f'Or who it has become: {command} infer "你是谁？" --load {files.persona.run.path}')
