"""`spark13b serve`: answer over HTTP, as OpenAI's API does, with a chat page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark13b.cli import answering, launching, options, sharing
from spark13b.errors import InputError

if TYPE_CHECKING:
    from spark13b.infer.session import FoundModel, Session

app = typer.Typer(add_completion=False)
_KEY = "SPARK13B_API_KEY"
_OPTIONS: dict[str, Any] = {"generation.num_beams": 1}  # each request is one text


@app.command(epilog="Example: spark13b serve --load runs/sft --port 8000, then open http://127.0.0.1:8000")
def serve(
    preset: options.Preset = None,
    load: options.Load = None,
    adapter: options.Adapter = None,
    merge_adapter: options.MergeAdapter = False,
    tokenizer: options.Tokenizer = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8000,
    seats: Annotated[
        int | None,
        typer.Option("--seats", min=1, max=256, help="Answers at once \\[default: 8, or as many as fit]."),
    ] = None,
    queue: Annotated[
        int, typer.Option("--queue", min=0, help="Requests that may wait; more are refused with 429.")
    ] = 64,
    context: Annotated[
        int | None,
        typer.Option("--context", min=2, help="Most tokens of prompt and answer \\[default: the model's]."),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds that one request may take.")] = 600.0,
    grace: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds for running answers to end when the server is stopped.")
    ] = 30.0,
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", help=f"Clients must send one of these. Repeatable; better {_KEY} or a file."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="A file of keys, one a line, that only you may read.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="Pages from there may ask. Repeatable; off by default.")
    ] = None,
    reuse: options.Reuse = True,
    model_name: Annotated[str, typer.Option("--model-name", help="The model's name in the API.")] = "spark13b",
    assignments: options.Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what serving needs in memory, and stop. Needs no device.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan of --dry-run as JSON.")] = False,
    nproc: launching.Nproc = None,
) -> None:
    """Serve a model over HTTP: OpenAI's chat and text completions, and a chat page at /.

    Without --load the model of 'spark13b demo' answers. Ctrl-C finishes the running answers, a second one does not.
    """
    if dry_run:
        from spark13b.cli.plan import show_plan
        from spark13b.train.plan import plan_answering

        values, files = answering.planned_model(
            preset, load, adapter, merge_adapter, _OPTIONS, assignments or [], nproc
        )
        places = answering.seats_for(seats, answering.SEATS, values, context, files)
        show_plan(plan_answering(values, places, context, files), as_json)
        return
    if as_json:
        raise InputError("--json is for the plan of --dry-run", fix="add --dry-run, or leave --json out")
    keys = _keys(api_key or [], api_key_file)

    def find() -> FoundModel:
        from spark13b.infer.session import find_model

        changes = _OPTIONS | sharing.options_for(nproc)
        return find_model(load, preset, tokenizer, changes, assignments or [], adapter)

    def work(found: FoundModel, part: sharing.Part) -> None:
        from spark13b.serve.server import address, listen

        progress = part.progress
        if found.is_demo:
            answering.tell_of_demo(found.weights.base, progress)
        socket = listen(host, port)  # before the model is loaded
        from spark13b.serve.app import Settings, make_app
        from spark13b.serve.desk import Desk
        from spark13b.serve.server import run

        session = answering.open_session(found, part, seats, context=context, fold=merge_adapter, reuse=reuse)
        _warm(session)
        desk = Desk(session.engine, session.seats + queue)
        settings = Settings(model_name, keys, cors_origin or (), timeout, progress.note)

        def ready() -> None:
            need = "key" if keys else "no key"
            progress.note(f"serving {model_name} at {address(socket)} (API: /v1, {need} needed)")

        run(make_app(session, desk, settings), desk, socket, grace, ready, part.live)
        progress.note(f"stopped; {session.speed()}")

    sharing.answer(find, work, merge_adapter)


def _warm(session: Session) -> None:
    """Compile the first graphs before anybody waits for them: begin an answer of the usual length."""
    from spark13b.infer.prompts import Prompt

    for _, piece in session.run(session.requests([Prompt("1")])):
        if len(piece.generation.tokens) > 1:
            return


def _keys(given: list[str], file: Path | None) -> list[str]:
    """The keys of the options, the environment and the file."""
    keys = [*given, *filter(None, [os.environ.get(_KEY)])]
    if file is not None:
        if not file.is_file():
            raise InputError("there is no such file", where=file, fix="check --api-key-file")
        if file.stat().st_mode & 0o077:
            raise InputError("others may read this file of keys", where=file, fix=f"chmod 600 {file}")
        keys += [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if not keys:
            raise InputError("the file holds no key", where=file, fix="write one key a line")
    if "" in given:
        raise InputError("an empty key lets nobody in", where="--api-key", fix="give a key")
    return keys
