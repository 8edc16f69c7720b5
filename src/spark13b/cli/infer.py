"""`spark13b infer`: answer prompts with a trained model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from spark13b.cli import console, options
from spark13b.errors import InputError

app = typer.Typer(add_completion=False)


@app.command(epilog='Example: spark13b infer "你是谁？" "What is 3 plus 5?" --load runs/sft --stream')
def infer(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Questions.", show_default=False)
    ] = None,
    preset: options.Preset = None,
    load: options.Load = None,
    adapter: options.Adapter = None,
    tokenizer: options.Tokenizer = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", help='JSON Lines, one {"input": "..."} a line.')
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the answers here as JSON Lines, in input order.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show text as soon as it is decided.")] = False,
    assignments: options.Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what answering needs in memory, and stop. Needs no device.")
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Answer questions. Without --load the model of 'spark13b demo' answers.

    Answers are text; with --prompt-file, --json or --output they are JSON Lines, unless --stream asks for text.
    """
    if dry_run:
        _show_plan(preset, load, assignments or [], as_json)
        return
    from spark13b.files import check_writable, replacing
    from spark13b.infer.prompts import read_prompts
    from spark13b.infer.session import Session, find_model

    questions = list(prompts or [])
    if prompt_file is not None:
        questions += read_prompts(prompt_file)
    elif not questions and not sys.stdin.isatty():
        questions = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not questions:
        raise InputError("no prompt was given", fix='spark13b infer "你是谁？", or --prompt-file FILE.jsonl')
    if stream and (as_json or output is not None):
        raise InputError("--stream shows text; --json and --output write JSON Lines", fix="leave one of them out")
    if output is not None:
        check_writable(output, force=force)
    progress = console.TerminalProgress()
    limit = {"generation.max_new_tokens": max_new_tokens}
    found = find_model(load, preset, tokenizer, limit, assignments or [], adapter)
    if found.is_demo:
        progress.note(f"no --load given: the model of 'spark13b demo' answers ({found.weights.base})")
    session = Session(found)
    if session.doubt:
        progress.note(f"note: {session.doubt}")
    session.check(questions)  # a prompt that is too long is found before any is answered
    if output is not None:
        with (
            replacing(output, force=force) as draft,
            draft.open("w", encoding="utf-8") as lines,
            progress.track("answering", len(questions), "prompts") as meter,
        ):
            for question in questions:
                lines.write(json.dumps(_record(session, question), ensure_ascii=False) + "\n")
                meter.advance()
        progress.note(f"{len(questions)} answers in {output}")
    elif as_json or (prompt_file is not None and not stream):
        for question in questions:
            print(json.dumps(_record(session, question), ensure_ascii=False), flush=True)
    else:
        for number, question in enumerate(questions):
            if len(questions) > 1:
                print(("\n" if number else "") + f"> {question}")
            _print(session.stream(question) if stream else iter([session.answer(question).predict]))
    progress.note(session.speed())


def _show_plan(name: str | None, load: Path | None, assignments: list[str], as_json: bool) -> None:
    """The plan of answering with a preset, or with that of the run around `load`."""
    from spark13b.cli.plan import show_plan
    from spark13b.config import load_preset
    from spark13b.run_folder import run_around
    from spark13b.train.plan import make_plan

    run = run_around(load) if name is None and load is not None else None
    if name is None and run is None:
        raise InputError("a plan needs a preset", fix="add --preset NAME; 'spark13b preset list' shows them")
    preset = load_preset(name or str(run.preset if run else ""), assignments=assignments)
    show_plan(make_plan(preset.model_copy(update={"task": "infer"})), as_json)


def _record(session: Any, question: str) -> dict[str, Any]:
    answer = session.answer(question)
    return {
        "input": question,
        "predict": answer.predict,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "finish_reason": answer.finish_reason,
    }


def _print(pieces: Iterator[str]) -> None:
    """Write pieces of an answer as they come, and end the line whatever happens."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
