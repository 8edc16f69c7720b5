"""`spark13b persona`: give a model its own name and character, and judge whether it keeps them."""

from __future__ import annotations

import typer

from spark13b.cli.persona_eval import evaluate, questions

app = typer.Typer(
    no_args_is_help=True,
    help="Give a model its own name and character, and judge whether it keeps them.",
    epilog="Example: spark13b persona questions --attribute attribute.json --output questions.jsonl",
)

app.command(
    "questions", epilog="Example: spark13b persona questions --attribute attribute.json --output questions.jsonl"
)(questions)
app.command("eval", epilog="Example: spark13b persona eval --predictions answers.jsonl --attribute attribute.json")(
    evaluate
)
