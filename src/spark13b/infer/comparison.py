"""How much a model lost by quantising: perplexity of both models on the same rows, and how often they choose alike.

Both are computed by the native library from memory-mapped weights; the logits of a part of a row are held at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from spark13b.ckpt.opening import open_checkpoint
from spark13b.ckpt.torch_names import with_own_names
from spark13b.config.model import SparkConfig
from spark13b.errors import InputError, JobError
from spark13b.infer.native_decoder import NativeDecoder
from spark13b.infer.native_model import open_native
from spark13b.model.names import match_names
from spark13b.native.library import find_library

_PART = 256  # tokens whose logits are held at once

Rows = Iterable[tuple[np.ndarray, np.ndarray]]  # ids (T+1,), and which of the T targets count


@dataclass(frozen=True)
class Comparison:
    """Means over `tokens` targets. `agreement`: where both models hold the same token for the most probable one."""

    loss: float
    base_loss: float
    agreement: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def base_perplexity(self) -> float:
        return math.exp(self.base_loss)

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.4g}, of the other {self.base_perplexity:.4g} "
            f"({self.perplexity / self.base_perplexity - 1:+.2%}); the same token in {self.agreement:.2%}"
        )

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {**asdict(self), "perplexity": self.perplexity, "base_perplexity": self.base_perplexity}


def compare(load: Path, base: Path, config: SparkConfig, rows: Rows) -> Comparison:
    """Compare the model at `load` with the one at `base`, of the same shape, on `rows`.

    Each computes with its weights as they are stored, in float32. Raises InputError when names or shapes do not fit,
    JobError without the native library.
    """
    config = config.model_copy(update={"compute_type": "float32", "embedding_init_type": "float32"})
    one, two = (_Reader(path, config) for path in (load, base))
    sums, tokens = np.zeros(3), 0
    for ids, counts in rows:
        for start in range(0, len(ids) - 1, _PART):
            part = slice(start, min(start + _PART, len(ids) - 1))
            logits, others = one.read(ids[part], start), two.read(ids[part], start)
            kept = np.flatnonzero(counts[part])
            targets = ids[1:][part][kept]
            alike = logits[kept].argmax(axis=1) == others[kept].argmax(axis=1)
            sums += [_loss(logits[kept], targets), _loss(others[kept], targets), alike.sum()]
            tokens += len(kept)
    if not tokens:
        raise InputError("no token of the rows counts", fix="measure on rows with answers in them")
    loss, base_loss, agreement = (sums / tokens).tolist()
    return Comparison(loss, base_loss, agreement, tokens)


class _Reader:
    """A model that reads one text after another, part by part."""

    def __init__(self, path: Path, config: SparkConfig) -> None:
        found = find_library()
        if found.library is None:
            raise JobError(f"the native library compares models, and {found.reason}", fix="run 'spark13b native build'")
        with with_own_names(open_checkpoint(path)) as checkpoint:
            match_names(checkpoint.shapes(), config, where=path)
            model = open_native(checkpoint, config, found.library)
        self._decoder = NativeDecoder(model, config.cache_slots, 0, _PART)

    def read(self, ids: np.ndarray, start: int) -> np.ndarray:
        """Ids (T,) at position `start` -> logits (T, V) float32 after each."""
        return self._decoder.logits(ids.tolist(), start, len(ids))


def _loss(logits: np.ndarray, targets: np.ndarray) -> float:
    """The sum of negative log likelihoods; logits (N, V), targets (N,)."""
    most = logits.max(axis=1, keepdims=True)
    sums = np.log(np.exp(logits - most, dtype=np.float32).sum(axis=1, dtype=np.float64)) + most[:, 0]
    return float((sums - logits[np.arange(len(targets)), targets]).sum())
