"""`spark13b tokenizer`: train and check SentencePiece tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spark13b.cli import options
from spark13b.cli.inputs import Input, ManyInputs

app = typer.Typer(
    no_args_is_help=True,
    help="Train or check a SentencePiece tokenizer with the special tokens of iFlytekSpark.",
    epilog="Example: spark13b tokenizer train --input qa.json --output tok --vocab-size 8000",
)


@app.command(
    "train",
    cls=ManyInputs,
    epilog="Example: spark13b tokenizer train --input qa.json book.txt --output tok --vocab-size 8000",
)
def train(
    inputs: Input,
    output: Annotated[
        Path,
        typer.Option(
            "--output", metavar="DIR", help="Folder for tokenizer.model and tokenizer.vocab.", show_default=False
        ),
    ],
    vocab_size: Annotated[
        int,
        typer.Option(
            "--vocab-size", metavar="N", help="Pieces, at most; a small corpus gives fewer.", show_default=False
        ),
    ],
    seed: Annotated[int, typer.Option("--seed", help="Decides the sample of a corpus over 1,000,000 lines.")] = 0,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Train a tokenizer from every text field of your records; the same input and seed give the same bytes."""
    from spark13b.cli.app import debug_wanted
    from spark13b.cli.console import TerminalProgress, print_json
    from spark13b.data.tokenizer_training import train_tokenizer

    progress = TerminalProgress()
    tokenizer = train_tokenizer(
        inputs,
        output,
        vocab_size,
        seed=seed,
        force=force,
        progress=progress,
        log=progress.note if debug_wanted() else None,
    )
    if tokenizer.vocab_size < vocab_size:
        progress.note(
            f"note: the text gave {tokenizer.vocab_size:,} pieces, not {vocab_size:,}: "
            "give more text, or set the model's vocab_size to this number"
        )
    if as_json:
        print_json(
            {"output": str(output), "pieces": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint, "seed": seed}
        )
    else:
        print(f"{output}: {tokenizer.vocab_size:,} pieces, fingerprint {tokenizer.fingerprint}")


@app.command("check", epilog="Example: spark13b tokenizer check tok")
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that holds tokenizer.model.", show_default=False)
    ],
    as_json: options.Json = False,
) -> None:
    """Show pieces, special tokens and byte fallback, and prove that text comes back. Exit code 2 when it is not fit."""
    from dataclasses import asdict

    from spark13b.cli.console import print_json
    from spark13b.data.tokenizer_check import check_tokenizer

    report = check_tokenizer(folder)
    if as_json:
        print_json({**asdict(report), "fit": report.problem is None})
    else:
        special = ", ".join(
            f"{piece} {'-' if index is None else index}" for piece, index in report.special_tokens.items()
        )
        print(report.path)
        print(f"  pieces          {report.pieces:,}")
        print(f"  special tokens  {special}")
        print(f"  byte fallback   {report.byte_pieces} of 256 byte pieces")
        print(f"  normalizer      {report.normalizer or 'unknown'}")
        print(f"  fingerprint     {report.fingerprint}")
        print("  round trip")
        for trip in report.round_trips:
            change = "" if trip.fidelity == "exact" else f" -> {trip.decoded!r}"
            print(f"    {trip.fidelity:10}  {trip.tokens:3} tokens  {trip.text!r}{change}")
    if report.problem is not None:
        raise report.problem
