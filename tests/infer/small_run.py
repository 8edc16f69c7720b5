"""A run's folder with a small model of random weights and the golden tokenizer, made without MindSpore."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spark13b.ckpt.writing import write_checkpoint
from spark13b.config import load_preset
from spark13b.model.names import expected_shapes

TOKENIZER = Path(__file__).parents[1] / "golden" / "tokenizer"
SHAPE = {
    "model.num_layers": 2,
    "model.hidden_size": 32,
    "model.num_heads": 4,
    "model.ffn_hidden_size": 64,
    "model.vocab_size": 8000,
    "model.seq_length": 128,
    "model.sparse_local_size": 64,
    "generation.max_new_tokens": 24,
}


def write_small_run(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A folder for `--load`; `changes` by names with __ for the dot, e.g. model__seq_length=64.

    Weights are large enough that greedy answers differ from prompt to prompt and rarely end early.
    """
    options = SHAPE | {name.replace("__", "."): value for name, value in changes.items()}
    preset = load_preset("cpu-tiny-infer", options=options)
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(preset.model).items():
        scale = 0.5 if len(shape) == 2 else 0.1
        weights[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
        if name.endswith("gamma"):
            weights[name] += 1
    checkpoint = folder / "checkpoints" / "step-00000001"
    (checkpoint / "rank_0").mkdir(parents=True)
    write_checkpoint(checkpoint / "rank_0" / "model.safetensors", weights, "safetensors")
    (checkpoint / "state.json").write_text("{}")
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset.model_dump(mode="json"), allow_unicode=True))
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    return folder
