"""What a training run is asked to do, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.config.preset import Preset


@dataclass(frozen=True)
class Job:
    """What to train on what. `load`: weights to begin with; `resume`: go on in `output`; `force`: replace it.

    Without `data` there is nothing to train on, but a plan.
    """

    preset: Preset
    data: Path | None
    output: Path
    load: Path | None = None
    resume: bool = False
    force: bool = False
    eval_data: Path | None = None


@dataclass(frozen=True)
class Evaluation:
    """Means over `tokens` targets, those whose mask counts. `accuracy`: the share whose logit is the row's largest."""

    loss: float
    accuracy: float
    tokens: int
    rows: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # a float ends at exp(709)

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, perplexity {self.perplexity:.2f}, accuracy {self.accuracy:.1%}"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """What `as_dict` made a dictionary of."""
        return cls(values["loss"], values["accuracy"], values["tokens"], values["rows"])

    def as_dict(self) -> dict[str, float]:
        """For JSON and for metrics."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "accuracy": self.accuracy,
            "tokens": self.tokens,
            "rows": self.rows,
        }


@dataclass(frozen=True)
class Result:
    """How a run ended. `finished` is False when it was interrupted; it can be resumed then."""

    output: Path
    checkpoint: Path
    finished: bool
    steps: int
    skipped: int  # of `steps`: those whose gradients overflowed
    first_loss: float | None
    last_loss: float | None  # means over the first and last tenth of the steps of this call; None: it made no step
    tokens_per_second: float
    evaluation: Evaluation | None = None  # the last one of this call
    best: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "output": str(self.output),
            "checkpoint": str(self.checkpoint),
            "finished": self.finished,
            "steps": self.steps,
            "skipped": self.skipped,
            "first_loss": self.first_loss,
            "last_loss": self.last_loss,
            "tokens_per_second": self.tokens_per_second,
            "evaluation": self.evaluation and self.evaluation.as_dict(),
            "best": None if self.best is None else str(self.best),
        }
