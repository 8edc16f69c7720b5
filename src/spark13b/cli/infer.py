"""`spark13b infer`: answer prompts with a trained model."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark13b.cli import answering, launching, options, sharing
from spark13b.cli.console import print_json
from spark13b.errors import InputError

if TYPE_CHECKING:
    from spark13b.infer.prompts import Prompt
    from spark13b.infer.requests import Generation, Request
    from spark13b.infer.session import FoundModel, Session
    from spark13b.progress import Progress

app = typer.Typer(add_completion=False)


@app.command(epilog='Example: spark13b infer "你是谁？" "What is 3 plus 5?" --load runs/sft --stream')
def infer(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="Questions.", show_default=False)
    ] = None,
    preset: options.Preset = None,
    load: options.Load = None,
    adapter: options.Adapter = None,
    merge_adapter: options.MergeAdapter = False,
    tokenizer: options.Tokenizer = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option("--prompt-file", help='JSON Lines of {"input": "..."}, or text, one prompt a line; - is stdin.'),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="Write the answers here as JSON Lines, in input order; goes on where it stopped."
        ),
    ] = None,
    system: Annotated[
        str,
        typer.Option("--system", help="How the model is to answer: stands before each question.", show_default=False),
    ] = "",
    stream: Annotated[bool, typer.Option("--stream", help="Show text as soon as it is decided.")] = False,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, max=256, help="Answers at once \\[default: 8, or as many as fit]."),
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option("--logprobs", min=0, max=100, help="Tell log-probabilities, with so many alternatives."),
    ] = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_new_tokens: options.MaxNewTokens = None,
    min_new_tokens: options.MinNewTokens = None,
    stop: options.Stop = None,
    num_beams: options.NumBeams = None,
    draft_tokens: options.DraftTokens = None,
    reuse: options.Reuse = False,
    assignments: options.Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what answering needs in memory, and stop. Needs no device.")
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
    nproc: launching.Nproc = None,
) -> None:
    """Answer questions. Without --load the model of 'spark13b demo' answers.

    Answers are text; with --prompt-file, --json, --output or JSON Lines in a pipe they are JSON Lines, unless --stream.
    """
    drawing = options.Drawing(
        temperature,
        top_k,
        top_p,
        seed,
        repetition_penalty,
        max_new_tokens,
        min_new_tokens,
        stop,
        num_beams,
        draft_tokens,
    )
    if dry_run:
        from spark13b.cli.plan import show_plan
        from spark13b.train.plan import plan_answering

        values, files = answering.planned_model(
            preset, load, adapter, merge_adapter, drawing.options(), assignments or [], nproc
        )
        seats = answering.seats_for(batch_size, 1, values, None, files)
        show_plan(plan_answering(values, seats, files=files), as_json)
        return
    if stream and (as_json or output is not None):
        raise InputError("--stream shows text; --json and --output write JSON Lines", fix="leave one of them out")
    if logprobs is not None and (stream or not (as_json or output is not None or prompt_file is not None)):
        fix = "leave --stream out" if stream else "add --json"
        raise InputError("log-probabilities are told in JSON alone", where="--logprobs", fix=fix)

    if output is not None and str(output) in ("-", "/dev/stdout"):
        raise InputError("without --output answers go to standard output", fix="leave it out; --json for JSON Lines")

    def find() -> FoundModel:
        from spark13b.files import check_writable_file
        from spark13b.infer.prompts import check_utf8, read_prompts
        from spark13b.infer.session import find_model

        check_utf8(system, "--system")
        if output is not None:
            check_writable_file(output, force=force, inputs=() if _is_stdin(prompt_file) else (prompt_file,))
        if prompt_file is not None and not _is_stdin(prompt_file):
            read_prompts(prompt_file)  # a broken line is found before anything is started
        changes = drawing.options() | sharing.options_for(nproc)
        found = find_model(load, preset, tokenizer, changes, assignments or [], adapter)
        if logprobs and found.preset.generation.num_beams > 1:
            fix = "--logprobs 0 tells those of its tokens alone"
            raise InputError("a beam search tells no alternatives to its tokens", where="--logprobs", fix=fix)
        return found

    def work(found: FoundModel, part: sharing.Part) -> None:
        (asked, are_records), progress = _prompts(prompts, prompt_file), part.progress
        if found.is_demo:
            answering.tell_of_demo(found.weights.base, progress)
        # a prompt that is too long is found before weights are read
        requests = found.requests(asked, logprobs, system=system)
        most, context = min(answering.SEATS, len(asked)), found.context(requests)
        session = answering.open_session(found, part, batch_size, most, context, merge_adapter, reuse)
        if output is not None:
            identity = f"{found.identity()} {logprobs} {merge_adapter}" + (f" {system}" if system else "")
            identity += " reuse" if reuse else ""
            _to_file(session, asked, requests, output, identity, force, progress)
            if as_json:
                print_json({"output": str(output), "answers": len(asked)})
        elif as_json or (are_records and not stream):
            for number, generation in _in_order(session, requests):
                print(json.dumps(_record(session, asked[number], generation), ensure_ascii=False), flush=True)
        else:
            _show(session, asked, requests, stream)
        progress.note(session.speed())

    sharing.answer(find, work, merge_adapter)


def _prompts(arguments: list[str] | None, file: Path | None) -> tuple[list[Prompt], bool]:
    """What is asked: arguments, then the file; else what comes through a pipe. And whether answers are records, too."""
    from spark13b.infer.prompts import piped_prompts, prompts_of, read_prompts

    asked, are_records = prompts_of(arguments or []), file is not None
    if _is_stdin(file):
        asked += piped_prompts(sys.stdin.read(), as_file=True)[0]
    elif file is not None:
        asked += read_prompts(file)
    elif not asked and not sys.stdin.isatty():
        asked, are_records = piped_prompts(sys.stdin.read())
    if not asked:
        raise InputError("no prompt was given", fix='spark13b infer "你是谁？", or --prompt-file FILE.jsonl')
    return asked, are_records


def _is_stdin(file: Path | None) -> bool:
    return file is not None and str(file) in ("-", "/dev/stdin")


def _in_order(session: Session, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
    """The finished answers in the order of the prompts."""
    done: dict[int, Generation] = {}
    expected = 0
    for number, piece in session.run(requests):
        if piece.generation.done:
            done[number] = piece.generation
        while expected in done:
            yield expected, done.pop(expected)
            expected += 1


def _to_file(
    session: Session,
    asked: Sequence[Prompt],
    requests: Sequence[Request],
    output: Path,
    identity: str,
    force: bool,
    progress: Progress,
) -> None:
    """Answer what is not answered yet, and write the file when all is there."""
    from spark13b.infer.journal import Journal
    from spark13b.infer.prompts import fingerprint_text

    identity += session.options.model_dump_json()
    whole = hashlib.sha256(identity.encode() + fingerprint_text(list(asked))).hexdigest()
    with Journal(output, whole, len(asked), force=force) as journal:
        missing = journal.missing()
        if journal.done:
            progress.note(f"{journal.done} answers of an earlier run are there, {len(missing)} are missing")
        try:
            with progress.track("answering", len(missing), "prompts") as meter:
                for number, piece in session.run([requests[index] for index in missing]):
                    if piece.generation.done:
                        index = missing[number]
                        journal.add(index, _record(session, asked[index], piece.generation))
                        meter.advance()
        except KeyboardInterrupt:
            progress.note(f"{journal.done} of {len(asked)} answers are kept; the same command goes on from there")
            raise
        journal.finish()
    progress.note(f"{len(asked)} answers in {output}")


def _show(session: Session, asked: Sequence[Prompt], requests: Sequence[Request], stream: bool) -> None:
    """Write text: each answer below its question when there are several. What is streamed comes in the same order."""
    held: dict[int, list[str]] = {}
    finished: set[int] = set()
    current = 0
    _head(asked, current)
    try:
        for number, piece in session.run(requests):
            if stream and number == current:
                _write(piece.text)
            else:
                held.setdefault(number, []).append(piece.text)
            if piece.generation.done:
                finished.add(number)
            while current in finished:
                _write("".join(held.pop(current, [])) + "\n")
                current += 1
                if current < len(asked):
                    _head(asked, current)
                    if stream:
                        _write("".join(held.pop(current, [])))
    except KeyboardInterrupt:
        _write("".join(held.pop(current, [])) + "\n")  # what there is of the answer stays
        raise


def _head(asked: Sequence[Prompt], number: int) -> None:
    if len(asked) > 1:
        _write(("\n" if number else "") + f"> {asked[number].shown}\n")


def _write(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _record(session: Session, prompt: Prompt, generation: Generation) -> dict[str, Any]:
    """An answer as a line of JSON."""
    record: dict[str, Any] = {
        "input": prompt.asked,
        "predict": generation.text,
        "prompt_tokens": len(generation.request.prompt),
        "new_tokens": len(generation.tokens),
        "finish_reason": generation.finish_reason,
    }
    record |= {name: value for name, value in prompt.others.items() if name not in record}
    if generation.request.logprobs is not None:
        piece = session.tokenizer.piece
        record["logprobs"] = [
            {
                "token": piece(token.id),
                "id": token.id,
                "logprob": token.logprob,
                "top": [{"token": piece(one), "id": one, "logprob": value} for one, value in token.top],
            }
            for token in generation.tokens
        ]
    if generation.score is not None:
        record["score"] = generation.score
        record["alternatives"] = [
            {"predict": other.text, "new_tokens": len(other.tokens), "score": other.score}
            for other in generation.alternatives
        ]
    return record
