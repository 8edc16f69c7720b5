"""`spark13b chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spark13b.cli import answering, console, options, sharing
from spark13b.cli.waiting import signals_end_it
from spark13b.errors import InputError

if TYPE_CHECKING:
    from spark13b.infer.chat import Chat

app = typer.Typer(add_completion=False)
_QUOTES = '"""'
_HELP = """/reset        forget the conversation
/undo         take back the last question and its answer
/retry        ask the last question again
/system TEXT  say how the model is to answer; without TEXT: nothing
/save FILE    write the conversation as a line of JSON
/exit         leave, as Ctrl-D does
A line that ends in \\ goes on in the next one; so does all between two lines of \"\"\".
Ctrl-C stops an answer, or drops the line that is being typed."""


@app.command(epilog="Example: spark13b chat --load runs/sft --temperature 0.7")
def chat(
    preset: options.Preset = None,
    load: options.Load = None,
    adapter: options.Adapter = None,
    merge_adapter: options.MergeAdapter = False,
    tokenizer: options.Tokenizer = None,
    system: Annotated[str, typer.Option("--system", help="How the model is to answer.", show_default=False)] = "",
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_new_tokens: options.MaxNewTokens = None,
    min_new_tokens: options.MinNewTokens = None,
    stop: options.Stop = None,
    draft_tokens: options.DraftTokens = None,
    assignments: options.Set = None,
) -> None:
    """Talk with a model. Without --load the model of 'spark13b demo' answers.

    In a pipe each line of standard input is a question, and answers alone go to standard output.
    """
    from spark13b.infer.chat import Chat
    from spark13b.infer.prompts import check_utf8
    from spark13b.infer.session import find_model

    drawing = options.Drawing(
        temperature,
        top_k,
        top_p,
        seed,
        repetition_penalty,
        max_new_tokens,
        min_new_tokens,
        stop,
        draft_tokens=draft_tokens,
    )
    check_utf8(system, "--system")
    progress = console.TerminalProgress()
    changes = drawing.options() | sharing.options_for(1)
    found = find_model(load, preset, tokenizer, changes, assignments or [], adapter)
    if found.preset.parallel.devices > 1:
        raise InputError(
            f"a conversation in the terminal has one process, not {found.preset.parallel.devices}",
            where="--set",
            fix="talk on the page of 'spark13b serve', whose processes share a model",
        )
    if found.is_demo:
        answering.tell_of_demo(found.weights.base, progress)
    session = answering.open_session(found, sharing.Part(progress), most=1, fold=merge_adapter, reuse=True)
    talk = Chat(session, system)
    if sys.stdin.isatty():
        progress.note("Ask something; /help shows what else can be done, Ctrl-D ends.")
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrows, history and editing for input()
    failed = False
    with contextlib.suppress(_Leave):
        for line in _inputs(progress):
            try:
                _do(talk, line, progress)
            except InputError as error:
                progress.note(f"error: {error.message()}")
                failed = True
    if failed and not sys.stdin.isatty():
        raise typer.Exit(InputError.exit_code)


class _Leave(Exception):
    """The conversation is over."""


def _do(talk: Chat, line: str, progress: console.TerminalProgress) -> None:
    """Do what a line asks for."""
    from spark13b.infer.prompts import check_utf8

    name, _, rest = line.partition(" ")
    if name in ("/exit", "/quit"):
        raise _Leave
    if name == "/help":
        progress.note(_HELP)
    elif name == "/reset":
        talk.reset()
        progress.note("The conversation is forgotten.")
    elif name == "/system":
        check_utf8(rest)
        talk.system = rest.strip()
        progress.note("From the next answer on." if talk.system else "No instruction any more.")
    elif name == "/undo":
        progress.note("Taken back." if talk.undo() is not None else "There is nothing to take back.")
    elif name == "/retry":
        question = talk.undo()
        if question is None:
            progress.note("There is no question yet.")
        else:
            _answer(talk, question, progress)
    elif name == "/save":
        if not rest.strip():
            raise InputError("a name is missing", fix="/save FILE.jsonl")
        if not talk.turns:
            raise InputError("there is nothing to save yet", fix="ask something first")
        path = Path(rest.strip()).expanduser()
        if path.exists():
            raise InputError("the file exists already", where=path, fix="choose another name")
        talk.save(path)
        progress.note(f"{len(talk.turns)} turns are in {rest.strip()}")
    elif name.startswith("/") and sys.stdin.isatty():
        progress.note(f"there is no {name}; /help shows what there is")
    else:
        _answer(talk, line, progress)


def _answer(talk: Chat, question: str, progress: console.TerminalProgress) -> None:
    """Write an answer as it comes; Ctrl-C ends it."""
    pieces = talk.ask(question)
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        pieces.close()  # type: ignore[attr-defined]  # of a generator
        sys.stdout.write(" …")
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    if talk.dropped:
        progress.note(f"(the oldest {talk.dropped} turns no longer fit in the context)")


def _inputs(progress: console.TerminalProgress) -> Iterator[str]:
    """What is typed, or the lines of a pipe; several lines are one where they were marked so. Raises _Leave."""
    terminal = sys.stdin.isatty()
    first = True
    while True:
        try:
            with _sigterm_leaves() if terminal else contextlib.nullcontext(), signals_end_it():
                line = _question(terminal)
        except EOFError:
            if terminal:
                sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            sys.stdout.write("\n")
            progress.note("Ctrl-D ends the conversation.")
            continue
        if first:
            line, first = line.removeprefix("\ufeff"), False
        if line.strip():
            yield line.strip()


def _question(terminal: bool) -> str:
    """The next question; what ends before its last line does is one, too. Raises EOFError where there is none."""
    more = "… " if terminal else ""
    line = input("\n> " if terminal else "")
    with contextlib.suppress(EOFError):
        if line.strip() == _QUOTES:
            line = ""
            while (one := input(more)).strip() != _QUOTES:
                line += one + "\n"
        while line.endswith("\\"):
            line = line[:-1] + "\n"
            line += input(more)
    return line


@contextlib.contextmanager
def _sigterm_leaves() -> Iterator[None]:
    """SIGTERM, which stops an answer as Ctrl-C does, ends the conversation where Ctrl-C does not."""

    def leave(number: int, frame: object) -> None:
        raise _Leave

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
