"""A run small enough for tests: 40 rows of 32 tokens, one layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spark13b.config import Preset, load_preset
from spark13b.data.preprocess import Options, preprocess_sft
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.progress import Silent

GOLDEN = Path(__file__).parents[1] / "golden"
INSTRUCTIONS = GOLDEN / "preprocess" / "alpaca200.json"
SMALL: dict[str, Any] = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.ffn_hidden_size": 64,
    "model.seq_length": 32,
    "model.sparse_local_size": 16,
    "train.batch_size": 2,
    "train.steps": 6,
    "train.save_every": 3,
}


def small_preset(**changes: Any) -> Preset:
    """`cpu-tiny-sft`, made smaller; `changes` by dotted key with `__` for the dot."""
    options = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    return load_preset("cpu-tiny-sft", options=options)


def small_rows(folder: Path, seq_length: int = 32, records: int = 200) -> Path:
    """A MindRecord file of sft rows, made of the first golden instructions."""
    path = folder / f"rows{records}.mindrecord"
    source = folder / f"{records}.json"
    source.write_text(json.dumps(json.loads(INSTRUCTIONS.read_text(encoding="utf-8"))[:records]), encoding="utf-8")
    preprocess_sft(
        [source], path, SparkTokenizer.load(GOLDEN / "tokenizer"), seq_length, options=Options(overlong="split")
    )
    return path


class Notes(Silent):
    """What a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def evaluated_preset(**changes: Any) -> Preset:
    """`small_preset` with an evaluation every second step; for runs with `--eval-data`."""
    return small_preset(**{"train__eval_every": 2, **changes})
