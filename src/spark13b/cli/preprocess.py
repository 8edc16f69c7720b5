"""`spark13b preprocess`: text or instructions to MindRecord training rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spark13b.cli import options
from spark13b.cli.inputs import Input, ManyInputs
from spark13b.cli.sizes import MIB, bytes_of
from spark13b.errors import InputError

if TYPE_CHECKING:
    from spark13b.data.preprocess import Options, Way
    from spark13b.data.report import Report

app = typer.Typer(
    no_args_is_help=True,
    help="Turn text or instructions into MindRecord training rows, look into them and check them.",
    epilog="Example: spark13b preprocess sft --input qa.json --output qa.mindrecord --tokenizer tok --seq-length 4096",
)

# as in spark13b.data, whose modules would load numpy
Overlong = Literal["error", "truncate", "split", "drop"]
Packing = Literal["greedy", "best-fit"]
Format = Literal["auto", "alpaca", "sharegpt", "messages", "text"]
DocumentFormat = Literal["auto", "alpaca", "text"]
OnError = Literal["fail", "skip"]
Engine = Literal["local", "ray"]

Output = Annotated[
    Path, typer.Option("--output", metavar="FILE.mindrecord", help="The MindRecord file to write.", show_default=False)
]
Tokenizer = Annotated[
    Path, typer.Option("--tokenizer", metavar="DIR", help="Folder that holds tokenizer.model.", show_default=False)
]
SeqLength = Annotated[
    int | None,
    typer.Option("--seq-length", metavar="N", help="A row holds one token more \\[default: the preset's, else 32768]."),
]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="OURS=THEIRS", help="A field under another name: --map output=answer. Repeatable."),
]
_RECORDS, _WAY = "Which records", "How the work is done (the rows are the same)"
Documents = Annotated[
    bool, typer.Option("--documents", help="Add a column document_ids: which document of its row a token is of.")
]
Deduplicate = Annotated[
    bool,
    typer.Option("--deduplicate", help="Leave out records that say the same as one before.", rich_help_panel=_RECORDS),
]
EvalFraction = Annotated[
    float,
    typer.Option(
        "--eval-fraction", min=0, max=0.9, help="Hold out this share, by a hash of the text.", rich_help_panel=_RECORDS
    ),
]
EvalOutput = Annotated[
    Path | None,
    typer.Option(
        "--eval-output", help="Rows of what is held out \\[default: NAME.eval.mindrecord].", rich_help_panel=_RECORDS
    ),
]
OnErrorOption = Annotated[
    OnError,
    typer.Option("--on-error", help="At a bad record: stop, or list it and go on.", rich_help_panel=_RECORDS),
]
MaxErrors = Annotated[
    int, typer.Option("--max-errors", min=0, help="Stop above so many bad records.", rich_help_panel=_RECORDS)
]
ShardSize = Annotated[
    str,
    typer.Option(
        "--shard-size", metavar="SIZE", help="Size of an output file, about, e.g. 4GB or 512MiB; a number alone is MiB."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes that encode \\[default: one a core].", rich_help_panel=_WAY),
]
EngineOption = Annotated[
    Engine, typer.Option("--engine", help="Processes here, or those of a Ray cluster.", rich_help_panel=_WAY)
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="The cluster: 'auto', or HOST:PORT \\[default: one that ends with the job].",
        rich_help_panel=_WAY,
    ),
]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Only go on with a job that was stopped / begin anew \\[default: go on if there is one].",
        rich_help_panel=_WAY,
        show_default=False,
    ),
]


@app.command(
    "pretrain",
    cls=ManyInputs,
    epilog="Example: spark13b preprocess pretrain --input a.jsonl b.txt --output ab.mindrecord --tokenizer tok",
)
def pretrain(
    inputs: Input,
    output: Output,
    tokenizer: Tokenizer,
    preset: options.Preset = None,
    seq_length: SeqLength = None,
    form: Annotated[
        DocumentFormat, typer.Option("--format", help="Which field: alpaca 'output', text 'text'.")
    ] = "auto",
    names: Map = None,
    documents: Documents = False,
    deduplicate: Deduplicate = False,
    eval_fraction: EvalFraction = 0.0,
    eval_output: EvalOutput = None,
    on_error: OnErrorOption = "fail",
    max_errors: MaxErrors = 1000,
    shard_size: ShardSize = "256MiB",
    workers: Workers = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    resume: Resume = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write documents one after the other, cut into rows. Reads the field 'output', or else 'text', of each record."""
    from spark13b.data.preprocess import Options, preprocess_pretrain

    length, _ = _of_preset(preset, seq_length, None)
    chosen = Options(
        form=None if form == "auto" else form,
        names=_names(names),
        documents=documents,
        deduplicate=deduplicate,
        held_out=eval_fraction,
        on_error=on_error,
        max_errors=max_errors,
        shard_bytes=bytes_of(shard_size, MIB, least=MIB),
    )
    way = _way(workers, engine, ray_address, resume)
    _do(preprocess_pretrain, inputs, output, tokenizer, length, chosen, way, eval_output, force, as_json)


@app.command(
    "sft",
    cls=ManyInputs,
    epilog="Example: spark13b preprocess sft --input qa.json --output qa.mindrecord --tokenizer tok --overlong split",
)
def sft(
    inputs: Input,
    output: Output,
    tokenizer: Tokenizer,
    preset: options.Preset = None,
    seq_length: SeqLength = None,
    form: Annotated[Format, typer.Option("--format", help="How records hold their turns.")] = "auto",
    names: Map = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template", help="Around a question, {} \\[default: the preset's, else '<User> {}<end><Bot> ']."
        ),
    ] = None,
    packing: Annotated[
        Packing, typer.Option("--packing", help="Into rows: in order, or in the order that fills them best.")
    ] = "greedy",
    overlong: Annotated[
        Overlong,
        typer.Option("--overlong", help="What becomes of an example that is longer than a row."),
    ] = "error",
    documents: Documents = False,
    deduplicate: Deduplicate = False,
    eval_fraction: EvalFraction = 0.0,
    eval_output: EvalOutput = None,
    on_error: OnErrorOption = "fail",
    max_errors: MaxErrors = 1000,
    shard_size: ShardSize = "256MiB",
    workers: Workers = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    resume: Resume = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write questions with their answers, packed into rows. Every answer is learned, nothing else.

    Formats: alpaca (instruction, input, output, history, system), sharegpt (conversations), messages (OpenAI's). An
    example longer than a row: 'error' stops and names it, 'truncate' cuts off its end, 'split' cuts it over several
    rows, 'drop' leaves it out.
    """
    from spark13b.data.preprocess import Options, preprocess_sft

    length, around = _of_preset(preset, seq_length, template)
    chosen = Options(
        form=None if form == "auto" else form,
        names=_names(names),
        template=around,
        packing=packing,
        overlong=overlong,
        documents=documents,
        deduplicate=deduplicate,
        held_out=eval_fraction,
        on_error=on_error,
        max_errors=max_errors,
        shard_bytes=bytes_of(shard_size, MIB, least=MIB),
    )
    way = _way(workers, engine, ray_address, resume)
    _do(preprocess_sft, inputs, output, tokenizer, length, chosen, way, eval_output, force, as_json)


Rows = Annotated[Path, typer.Argument(metavar="FILE.mindrecord", help="What 'preprocess' wrote.", show_default=False)]
RowsTokenizer = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="DIR", help="Folder of tokenizer.model \\[default: that of the manifest]."),
]


@app.command("inspect", epilog="Example: spark13b preprocess inspect qa.mindrecord --rows 0:3")
def inspect(
    file: Rows,
    tokenizer: RowsTokenizer = None,
    rows: Annotated[str, typer.Option("--rows", metavar="FROM:TO", help="Which rows to show, from 0.")] = "0:1",
    as_json: options.Json = False,
) -> None:
    """Show rows as text, learned tokens in colour, and what the file says of itself."""
    from spark13b.cli.data_report import show_rows
    from spark13b.data.inspecting import look_into

    show_rows(look_into(file, _range(rows), tokenizer), as_json)


@app.command("verify", epilog="Example: spark13b preprocess verify qa.mindrecord")
def verify(file: Rows, tokenizer: RowsTokenizer = None, as_json: options.Json = False) -> None:
    """Read all rows; check their shapes, masks, padding and ids against the tokenizer and the manifest."""
    from spark13b.cli.console import TerminalProgress
    from spark13b.cli.data_report import show_verified
    from spark13b.data.inspecting import verify_rows

    show_verified(verify_rows(file, tokenizer, TerminalProgress()), as_json)


def _range(text: str) -> range:
    first, colon, last = text.partition(":")
    try:
        start = int(first or 0)
        return range(start, int(last) if colon else start + 1)
    except ValueError:
        raise InputError(f"'{text}' names no rows", where="--rows", fix="write a number, or FROM:TO") from None


def _of_preset(preset: str | None, seq_length: int | None, template: str | None) -> tuple[int, str]:
    """The row's length and the template: what is given, else the preset's, else the original's."""
    from spark13b.config.template import PROMPT_TEMPLATE, flaw_of

    flaw = None if template is None else flaw_of(template)
    if flaw is not None:
        raise InputError(f"the template {flaw[0]}", where="--template", fix=flaw[1])
    if preset is None:
        return 32768 if seq_length is None else seq_length, template or PROMPT_TEMPLATE
    from spark13b.config import load_preset

    values = load_preset(preset)
    length = values.model.seq_length if seq_length is None else seq_length
    return length, template or values.generation.prompt_template


def _names(given: list[str] | None) -> dict[str, str]:
    """Our field names with those of the files."""
    ours = ("instruction", "input", "output", "history", "system", "conversations", "messages", "text")
    names: dict[str, str] = {}
    for pair in given or []:
        mine, equals, theirs = pair.partition("=")
        if not equals or not theirs or mine not in ours:
            raise InputError(
                f"'{pair}' maps no field", where="--map", fix=f"write OURS=THEIRS; OURS is one of {', '.join(ours)}"
            )
        names[mine] = theirs
    return names


def _do(
    job: Callable[..., Report],
    inputs: list[Path],
    output: Path,
    tokenizer: Path,
    seq_length: int,
    chosen: Options,
    way: Way,
    held_out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Do a job of `data/preprocess.py` and show its report."""
    from spark13b.cli.console import TerminalProgress
    from spark13b.cli.data_report import show_report
    from spark13b.data.tokenizer import SparkTokenizer

    if held_out is not None and not chosen.held_out:
        raise InputError("nothing is held out", where="--eval-output", fix="add --eval-fraction 0.01, for example")
    loaded = SparkTokenizer.load(tokenizer)
    progress = TerminalProgress()
    report = job(
        inputs, output, loaded, seq_length, options=chosen, way=way, held_out=held_out, force=force, progress=progress
    )
    show_report(report, output, as_json)


def _way(workers: int | None, engine: Any, ray_address: str | None, resume: bool | None) -> Way:
    from spark13b.data.preprocess import Way

    if ray_address is not None and engine != "ray":
        raise InputError("--ray-address is for --engine ray", fix="add --engine ray, or leave it out")
    return Way(workers or 0, engine, ray_address, resume)
