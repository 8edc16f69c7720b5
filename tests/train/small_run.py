"""A run small enough for tests: 40 rows of 32 tokens, one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spark13b.config import Preset, load_preset
from spark13b.data.preprocess import preprocess_sft
from spark13b.data.tokenizer import SparkTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
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


def small_rows(folder: Path) -> Path:
    """A MindRecord file of sft rows, made of the golden instructions."""
    path = folder / "rows.mindrecord"
    source = GOLDEN / "preprocess" / "alpaca200.json"
    preprocess_sft([source], path, SparkTokenizer.load(GOLDEN / "tokenizer"), 32, overlong="split")
    return path
