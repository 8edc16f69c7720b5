"""`spark13b persona`: give a model its own name and character, and judge whether it keeps them."""

from __future__ import annotations

import typer

from spark13b.cli.persona_eval import evaluate, questions
from spark13b.cli.persona_teach import concat, extract

app = typer.Typer(
    no_args_is_help=True,
    help="Give a model its own name and character, and judge whether it keeps them.",
    epilog="Example: spark13b persona questions --attribute attribute.json --output questions.jsonl",
)

app.command("concat", epilog="Example: spark13b persona concat --template T.jsonl --attribute attribute.json")(concat)
app.command("extract", epilog="Example: spark13b persona extract --output qa_data.json --errors data_exception.json")(
    extract
)
app.command(
    "questions", epilog="Example: spark13b persona questions --attribute attribute.json --output questions.jsonl"
)(questions)
app.command("eval", epilog="Example: spark13b persona eval --predictions answers.jsonl --attribute attribute.json")(
    evaluate
)
