"""From logits to the next token: penalty, temperature, top_k, top_p, draw (shared/SPEC.md, section 8)."""

from __future__ import annotations

import numpy as np

from spark13b.config.sections import GenerationConfig


class Sampler:
    """The choices of one sequence; holds its penalties and its random state. Exact over the whole vocabulary."""

    def __init__(self, options: GenerationConfig) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._penalties: dict[int, float] = {}  # by token already chosen; the prompt's tokens carry none

    def choose(self, logits: np.ndarray) -> int:
        """The next token from logits (V,) float32."""
        options = self._options
        if options.repetition_penalty != 1 and self._penalties:
            logits = logits.copy()
            logits[list(self._penalties)] -= list(self._penalties.values())
        token = self._draw(logits) if options.do_sample else int(logits.argmax())
        seen = self._penalties.get(token, 0.0)
        self._penalties[token] = seen + options.repetition_penalty_increase if seen else options.repetition_penalty
        return token

    def _draw(self, logits: np.ndarray) -> int:
        probabilities = nucleus(logits, self._options)
        return int(self._random.choice(probabilities.size, p=probabilities))


def nucleus(logits: np.ndarray, options: GenerationConfig) -> np.ndarray:
    """The distribution (V,) float64 that a token is drawn from, after temperature, top_k and top_p.

    top_k keeps the k most probable tokens; top_p the fewest most probable ones whose sum reaches p. Among equal
    logits the lower id comes first.
    """
    scaled = logits.astype(np.float64) / options.temperature
    order = np.argsort(-scaled, kind="stable")
    if options.top_k:
        order = order[: options.top_k]
    weights = np.exp(scaled[order] - scaled[order[0]])
    weights /= weights.sum()
    if options.top_p < 1:
        kept = int(np.searchsorted(np.cumsum(weights), options.top_p)) + 1
        order, weights = order[:kept], weights[:kept]
        weights = weights / weights.sum()
    probabilities = np.zeros(logits.size)
    probabilities[order] = weights
    return probabilities
