"""`spark13b preprocess`: text or instructions to MindRecord training rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spark13b.cli import options
from spark13b.cli.inputs import Input, ManyInputs

if TYPE_CHECKING:
    from spark13b.data.ledger import Ledger

app = typer.Typer(
    no_args_is_help=True,
    help="Turn text or instructions into MindRecord training rows.",
    epilog="Example: spark13b preprocess sft --input qa.json --output qa.mindrecord --tokenizer tok --seq-length 4096",
)


Overlong = Literal["error", "truncate", "split", "drop"]  # as in data.overlong, which would load numpy

Output = Annotated[
    Path, typer.Option("--output", metavar="FILE.mindrecord", help="The MindRecord file to write.", show_default=False)
]
Tokenizer = Annotated[
    Path, typer.Option("--tokenizer", metavar="DIR", help="Folder that holds tokenizer.model.", show_default=False)
]
SeqLength = Annotated[
    int, typer.Option("--seq-length", metavar="N", help="The model's sequence length; a row holds one token more.")
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
    seq_length: SeqLength = 32768,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write documents one after the other, cut into rows. Reads the field 'output', or else 'text', of each record."""
    from spark13b.cli.console import TerminalProgress
    from spark13b.data.preprocess import preprocess_pretrain
    from spark13b.data.tokenizer import SparkTokenizer

    ledger = preprocess_pretrain(
        inputs, output, SparkTokenizer.load(tokenizer), seq_length, force=force, progress=TerminalProgress()
    )
    _show(ledger, output, as_json)


@app.command(
    "sft",
    cls=ManyInputs,
    epilog="Example: spark13b preprocess sft --input qa.json --output qa.mindrecord --tokenizer tok --overlong split",
)
def sft(
    inputs: Input,
    output: Output,
    tokenizer: Tokenizer,
    seq_length: SeqLength = 32768,
    overlong: Annotated[
        Overlong,
        typer.Option("--overlong", help="What becomes of an example that is longer than a row."),
    ] = "error",
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write questions ('instruction' and 'input') with their answers ('output'), packed into rows.

    Only the answers are learned. An example longer than a row: 'error' stops and names it, 'truncate' cuts off its
    end, 'split' cuts it over several rows, 'drop' leaves it out.
    """
    from spark13b.cli.console import TerminalProgress
    from spark13b.data.preprocess import preprocess_sft
    from spark13b.data.tokenizer import SparkTokenizer

    ledger = preprocess_sft(
        inputs,
        output,
        SparkTokenizer.load(tokenizer),
        seq_length,
        overlong=overlong,
        force=force,
        progress=TerminalProgress(),
    )
    _show(ledger, output, as_json)


def _show(ledger: Ledger, output: Path, as_json: bool) -> None:
    """The ledger on stdout."""
    from dataclasses import asdict

    from spark13b.cli.console import print_json

    if as_json:
        print_json(asdict(ledger))
        return
    lines = [
        ("read", f"{ledger.read:,}"),
        (
            "kept",
            f"{ledger.kept:,}  (packed {ledger.packed:,}, truncated {ledger.truncated:,}, split {ledger.split:,})",
        ),
        ("dropped", f"{ledger.dropped:,}"),
        ("tokens", f"{ledger.tokens:,}  (learned {ledger.learned_tokens:,}, lost {ledger.lost_tokens:,})"),
        ("rows", f"{ledger.rows:,}"),
        ("fill rate", f"{ledger.fill_rate:.2%}"),
    ]
    if ledger.empty:
        lines.append(("empty", f"{ledger.empty:,}  (without a text or an answer: they teach <end> alone)"))
    if ledger.ignored_fields:
        lines.append(("ignored", ", ".join(f"'{name}' in {count:,}" for name, count in ledger.ignored_fields.items())))
    print(output)
    for name, value in lines:
        print(f"  {name:9}  {value}")
