"""Small checkpoints that several tests use."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ckpt_samples import LAYERS, C, F, V

from spark13b.ckpt import write_checkpoint
from spark13b.config import SparkConfig


@pytest.fixture(scope="session")
def config() -> SparkConfig:
    """The golden model's shape."""
    return SparkConfig(num_layers=LAYERS, hidden_size=C, num_heads=4, ffn_hidden_size=F, vocab_size=V)


@pytest.fixture(scope="session")
def golden_weights() -> dict[str, np.ndarray]:
    """The weights of the original's model, by MindSpore's names."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "reference.npz")
    return {name.removeprefix("weights/"): golden[name] for name in golden.files if name.startswith("weights/")}


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A folder in memory, for files that a disk would take seconds to write."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def weights(tmp_path: Path, golden_weights: dict[str, np.ndarray]) -> Path:
    """The golden weights as a .ckpt file."""
    write_checkpoint(tmp_path / "weights.ckpt", golden_weights)
    return tmp_path / "weights.ckpt"


@pytest.fixture
def every_dtype() -> dict[str, np.ndarray]:
    """One tensor of each number format that all three file formats hold, and awkward shapes."""
    rng = np.random.default_rng(3)
    numbers = rng.normal(size=(6, 5)) * 50
    tensors = {
        f"t.{name}": numbers.astype(name)
        for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    }
    return tensors | {
        "t.bfloat16": numbers.astype(ml_dtypes.bfloat16),
        "one_number": np.array(300001, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "transposed": numbers.astype(np.float32).T,
        "名字": np.array([1.5, np.nan, -np.inf], np.float32),
    }
