"""Beam search as bookkeeping: which beam goes on with which token. The caches are the engine's business."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from spark13b.config.sections import GenerationConfig
from spark13b.infer.sampling import Penalties, log_total, most_probable, without_end


@dataclass(frozen=True)
class Hypothesis:
    """A text: its tokens without the end, their log-probabilities, and its score, the mean over all it chose."""

    tokens: list[int]
    logprobs: list[float]
    score: float
    ended: bool  # by the end token


@dataclass(frozen=True)
class Step:
    """The beams after a step: which beam each of them continues, and with which token."""

    parents: list[int]
    tokens: list[int]


@dataclass
class _Beam:
    penalties: Penalties
    total: float = 0.0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def with_token(self, token: int, logprob: float) -> _Beam:
        penalties = self.penalties.copy()
        penalties.count(token)
        return _Beam(penalties, self.total + logprob, [*self.tokens, token], [*self.logprobs, logprob])


class BeamSearch:
    """The `num_beams` best texts of at most `most` tokens, by the mean log-probability of a text's tokens, the end
    included. The repetition penalty lowers logits before they become log-probabilities.

    search = BeamSearch(options, end_id, most)
    step = search.advance(logits)          # (1, V) after the prompt, then (len(step.tokens), V), until search.done
    """

    def __init__(self, options: GenerationConfig, end_id: int | None, most: int) -> None:
        self._options, self._end_id, self._most = options, end_id, most
        self._beams = [_Beam(Penalties(options))]
        self._ended: list[Hypothesis] = []
        self.done = False
        self._cut = False  # the greatest length was reached

    def advance(self, logits: np.ndarray) -> Step:
        """Go on from the beams with logits (beams, V) float32.

        A beam that goes on in any way keeps its place in the result, so that its cache need not move.
        """
        width, length = self._options.num_beams, len(self._beams[0].tokens) + 1
        early = length <= self._options.min_new_tokens
        scores = np.empty(logits.shape)
        for row, beam in enumerate(self._beams):
            lowered = without_end(beam.penalties.applied(logits[row]), self._end_id, early).astype(np.float64)
            scores[row] = beam.total + lowered - log_total(lowered)
        going: list[tuple[int, int, float]] = []
        for place in most_probable(scores.reshape(-1), 2 * width):  # at most one end a beam, so `width` go on
            parent, token = divmod(int(place), logits.shape[1])
            total = float(scores[parent, token])
            if total == -np.inf:
                break
            if token == self._end_id:
                self._end(self._beams[parent], total, length)
            elif len(going) < width:
                going.append((parent, token, total))
        if length >= self._most or not going or self._settled(going[0][2], length):
            self._beams = [self._beams[p].with_token(t, total - self._beams[p].total) for p, t, total in going]
            self.done, self._cut = True, length >= self._most
            return Step([], [])
        going = _in_place(going)
        step = Step([parent for parent, _, _ in going], [token for _, token, _ in going])
        self._beams = [self._beams[p].with_token(t, total - self._beams[p].total) for p, t, total in going]
        return step

    def best(self, count: int) -> list[Hypothesis]:
        """The best texts, best first: those that have ended, and the beams where they were cut or go on still."""
        texts = list(self._ended)
        if self._cut or not self.done:
            texts += [
                Hypothesis(beam.tokens, beam.logprobs, beam.total / len(beam.tokens), ended=False)
                for beam in self._beams
                if beam.tokens
            ]
        return sorted(texts, key=lambda text: -text.score)[:count]

    def _end(self, beam: _Beam, total: float, length: int) -> None:
        self._ended.append(Hypothesis(beam.tokens, beam.logprobs, total / length, ended=True))
        self._ended.sort(key=lambda text: -text.score)
        del self._ended[self._options.num_beams :]

    def _settled(self, best_total: float, length: int) -> bool:
        """Whether no running beam can come among the best: its total only falls, divided by `most` at best."""
        if len(self._ended) < self._options.num_beams:
            return False
        return best_total / self._most <= self._ended[-1].score


def _in_place(going: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    """The same beams, each parent's best child in the parent's place as far as there are so many places."""
    placed: list[tuple[int, int, float] | None] = [None] * len(going)
    others = []
    for beam in going:
        if beam[0] < len(placed) and placed[beam[0]] is None:
            placed[beam[0]] = beam
        else:
            others.append(beam)
    rest = iter(others)
    return [beam if beam is not None else next(rest) for beam in placed]
