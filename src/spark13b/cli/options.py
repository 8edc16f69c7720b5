"""One spelling for one thing in all commands: the options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from spark13b.errors import InputError

Preset = Annotated[
    str | None, typer.Option("--preset", "-p", help="A preset's name (see 'spark13b preset list') or a YAML file.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one preset value: --set model.seq_length=4096. Repeatable; wins over the rest."),
]
Load = Annotated[
    Path | None, typer.Option("--load", help="Weights: a run's folder, a checkpoint file, or a folder with rank_0/.")
]
Adapter = Annotated[
    Path | None,
    typer.Option("--adapter", help="LoRA adapters beside --load: adapters.safetensors, or a LoRA run's folder."),
]
MergeAdapter = Annotated[
    bool, typer.Option("--merge-adapter", help="Add the adapters to the weights at load: faster, and rounded.")
]
Reuse = Annotated[
    bool,
    typer.Option(
        "--reuse/--no-reuse", help="Read of a prompt what no text before began with. Answers may differ by rounding."
    ),
]
Tokenizer = Annotated[Path | None, typer.Option("--tokenizer", help="Folder that holds tokenizer.model.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

_ANSWERS = "How answers are drawn"  # the preset's section `generation`, which these change
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", min=0, help="Draw instead of taking the best; 0: the best.", rich_help_panel=_ANSWERS
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", min=0, help="Draw among the k most probable; 0: all.", rich_help_panel=_ANSWERS),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", min=0, max=1, help="Draw among the fewest that reach p.", rich_help_panel=_ANSWERS),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Of the draws.", rich_help_panel=_ANSWERS)]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty", min=0, help="Taken from a used token's logit; 1: off.", rich_help_panel=_ANSWERS
    ),
]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens.", rich_help_panel=_ANSWERS)
]
MinNewTokens = Annotated[
    int | None, typer.Option("--min-new-tokens", min=0, help="Shortest answer in tokens.", rich_help_panel=_ANSWERS)
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="A text that ends an answer. Repeatable.", rich_help_panel=_ANSWERS)
]
NumBeams = Annotated[
    int | None, typer.Option("--num-beams", min=1, help="Beam search over so many.", rich_help_panel=_ANSWERS)
]
DraftTokens = Annotated[
    int | None,
    typer.Option(
        "--draft-tokens",
        min=0,
        max=15,
        help="Guess up to so many tokens from what was said before; the answer stays the same.",
        rich_help_panel=_ANSWERS,
    ),
]


@dataclass(frozen=True)
class Drawing:
    """What those options say."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    stop: list[str] | None = None
    num_beams: int | None = None
    draft_tokens: int | None = None

    def options(self) -> dict[str, Any]:
        """The values of a preset that follow. A temperature, top_k or top_p means to draw; temperature 0 not to."""
        if self.top_p == 0:
            raise InputError(
                "nothing reaches a top_p of 0", where="--top-p", fix="--temperature 0 takes the best token"
            )
        draws = any(value is not None for value in (self.temperature, self.top_k, self.top_p))
        return {
            "generation.do_sample": (self.temperature is None or self.temperature > 0) if draws else None,
            "generation.temperature": self.temperature or None,
            "generation.top_k": self.top_k,
            "generation.top_p": self.top_p,
            "generation.seed": self.seed,
            "generation.repetition_penalty": self.repetition_penalty,
            "generation.max_new_tokens": self.max_new_tokens,
            "generation.min_new_tokens": self.min_new_tokens,
            "generation.stop": self.stop or None,
            "generation.num_beams": self.num_beams,
            "generation.draft_tokens": self.draft_tokens,
        }
