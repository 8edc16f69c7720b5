"""From logits to the next token: penalty, temperature, top_k, top_p, draw (shared/SPEC.md, section 8).

Exact over the whole vocabulary, without sorting it: the most probable tokens are picked out by partition, more of them
until they hold what is asked for.
"""

from __future__ import annotations

import numpy as np

from spark13b.config.sections import GenerationConfig

_FIRST = 512  # tokens that are sorted at first to find a nucleus


class Penalties:
    """The additive, growing penalties of one text: by token already chosen; the prompt's tokens carry none."""

    def __init__(self, options: GenerationConfig) -> None:
        self._first, self._increase = options.repetition_penalty, options.repetition_penalty_increase
        self._by_token: dict[int, float] = {}

    def applied(self, logits: np.ndarray) -> np.ndarray:
        """The logits (V,) less the penalties; a copy where there are any."""
        if self._first == 1 or not self._by_token:
            return logits
        logits = logits.copy()
        logits[list(self._by_token)] -= np.fromiter(self._by_token.values(), np.float32, len(self._by_token))
        return logits

    def count(self, token: int) -> None:
        """The token was chosen."""
        seen = self._by_token.get(token, 0.0)
        self._by_token[token] = seen + self._increase if seen else self._first

    def copy(self) -> Penalties:
        """The same, to go another way from here."""
        other = object.__new__(Penalties)
        other._first, other._increase, other._by_token = self._first, self._increase, dict(self._by_token)
        return other


class Sampler:
    """The choices of one text; holds its penalties and its random state, so that no other text matters.

    `end_id` is not chosen before `options.min_new_tokens` tokens.
    """

    def __init__(self, options: GenerationConfig, end_id: int | None = None) -> None:
        self._options, self._end_id = options, end_id
        self._random = np.random.default_rng(options.seed)
        self._penalties = Penalties(options)
        self._chosen = 0

    def choose(self, logits: np.ndarray) -> int:
        """The next token from logits (V,) float32."""
        options = self._options
        logits = without_end(self._penalties.applied(logits), self._end_id, self._chosen < options.min_new_tokens)
        token = self._draw(logits) if options.do_sample else int(logits.argmax())
        self._penalties.count(token)
        self._chosen += 1
        return token

    def _draw(self, logits: np.ndarray) -> int:
        tokens, weights = nucleus(logits, self._options)
        sums = np.cumsum(weights)
        place = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        return int(tokens[min(place, len(tokens) - 1)])


def without_end(logits: np.ndarray, end_id: int | None, forbidden: bool) -> np.ndarray:
    """The logits (V,), where the end is `forbidden` with none for it."""
    if not forbidden or end_id is None:
        return logits
    logits = logits.copy()
    logits[end_id] = -np.inf
    return logits


def nucleus(logits: np.ndarray, options: GenerationConfig) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn and their weights, float64, after temperature, top_k and top_p.

    top_k keeps the k most probable tokens; top_p then the fewest most probable ones whose share reaches p. Among equal
    logits the lower id comes first.
    """
    scaled = logits.astype(np.float64) / options.temperature
    if options.top_k and options.top_k < scaled.size:
        tokens = most_probable(scaled, options.top_k)
        return _shortest(tokens, np.exp(scaled[tokens] - scaled[tokens[0]]), options.top_p)
    weights = np.exp(scaled - scaled.max())
    if options.top_p >= 1:
        return np.arange(weights.size), weights
    total, count = weights.sum(), _FIRST
    while count < weights.size:
        tokens = most_probable(scaled, count)
        if weights[tokens].sum() >= options.top_p * total * (1 + 1e-9):
            return _shortest(tokens, weights[tokens], options.top_p, total)
        count *= 8
    tokens = np.argsort(-scaled, kind="stable")
    return _shortest(tokens, weights[tokens], options.top_p, total)


def most_probable(logits: np.ndarray, count: int) -> np.ndarray:
    """The ids of the `count` largest logits (V,), largest first, equal ones by their ids."""
    if count >= logits.size:
        return np.argsort(-logits, kind="stable")
    bound = np.partition(logits, logits.size - count)[logits.size - count]
    above = np.flatnonzero(logits > bound)
    level = np.flatnonzero(logits == bound)[: count - above.size]
    found = np.concatenate((above, level))
    return found[np.lexsort((found, -logits[found]))]


def logprobs_of(logits: np.ndarray, token: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of `token` under logits (V,), and the `top` most probable tokens with theirs, best first."""
    exact = logits.astype(np.float64)
    total = log_total(exact)
    best = most_probable(exact, top) if top else ()
    return float(exact[token] - total), tuple((int(one), float(exact[one] - total)) for one in best)


def log_total(logits: np.ndarray) -> float:
    """The logarithm of the sum of exp(logits), float64."""
    largest = logits.max()
    return float(largest + np.log(np.exp(logits - largest).sum()))


def _shortest(
    tokens: np.ndarray, weights: np.ndarray, share: float, total: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The first of `tokens`, most probable first, whose weights reach `share` of the `total`."""
    if share >= 1:
        return tokens, weights
    sums = np.cumsum(weights)
    kept = int(np.searchsorted(sums, share * (sums[-1] if total is None else total))) + 1
    return tokens[:kept], weights[:kept]
