"""Beam search against all texts there are, and against greedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from spark13b.config.sections import GenerationConfig
from spark13b.infer.beams import BeamSearch, Hypothesis
from spark13b.infer.sampling import Sampler

END = 3
Model = Callable[[tuple[int, ...]], np.ndarray]  # a text -> logits of what comes next


def random_model(seed: int, vocabulary: int = 4) -> Model:
    """Logits that depend on the whole text."""

    def logits(text: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([seed, *text]).normal(size=vocabulary).astype(np.float32) * 2

    return logits


def search(model: Model, options: GenerationConfig, most: int) -> tuple[BeamSearch, int]:
    """The search at its end, and how many caches were moved."""
    beams, texts, moved = BeamSearch(options, END, most), [()], 0
    while not beams.done:
        step = beams.advance(np.stack([model(text) for text in texts]))
        moved += sum(parent != place for place, parent in enumerate(step.parents))
        texts = [(*texts[parent], token) for parent, token in zip(step.parents, step.tokens, strict=True)]
    return beams, moved


def all_texts(model: Model, most: int, least: int = 0) -> list[tuple[float, tuple[int, ...], bool]]:
    """Mean log-probability, tokens, ended: of every text of at most `most` tokens, best first."""
    found = []

    def walk(text: tuple[int, ...], total: float) -> None:
        if len(text) == most:
            found.append((total / len(text), text, False))
            return
        logits = model(text).astype(np.float64)
        if len(text) < least:
            logits[END] = -np.inf
        logprobs = logits - np.log(np.exp(logits).sum())
        for token, logprob in enumerate(logprobs):
            if token != END:
                walk((*text, token), total + logprob)
            elif len(text) >= least:
                found.append(((total + logprob) / (len(text) + 1), text, True))

    walk((), 0.0)
    return sorted(found, reverse=True)


def told(texts: list[Hypothesis]) -> list[tuple[tuple[int, ...], bool]]:
    return [(tuple(text.tokens), text.ended) for text in texts]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("least", [0, 2])
def test_with_beams_enough_for_all_texts_the_best_are_found(seed: int, least: int) -> None:
    model = random_model(seed)
    beams, _ = search(model, GenerationConfig(num_beams=32, min_new_tokens=least), most=3)
    expected = all_texts(model, 3, least)[:6]
    assert told(beams.best(6)) == [(text, ended) for _, text, ended in expected]
    np.testing.assert_allclose([text.score for text in beams.best(6)], [score for score, _, _ in expected])


@pytest.mark.parametrize("seed", range(5))
def test_a_narrow_search_ends_early_with_what_a_search_to_the_end_finds(seed: int) -> None:
    """Stopping as soon as no running beam can win any more changes nothing."""

    class ToTheEnd(BeamSearch):
        def _settled(self, best_total: float, length: int) -> bool:
            return False

    model = random_model(seed, vocabulary=6)
    options = GenerationConfig(num_beams=3)
    early, _ = search(model, options, most=9)
    late, texts = ToTheEnd(options, END, 9), [()]
    while not late.done:
        step = late.advance(np.stack([model(text) for text in texts]))
        texts = [(*texts[parent], token) for parent, token in zip(step.parents, step.tokens, strict=True)]
    assert told(early.best(3)) == told(late.best(3))


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_one_beam_is_greedy(penalty: float) -> None:
    model = random_model(1, vocabulary=9)
    options = GenerationConfig(num_beams=1, repetition_penalty=penalty)
    sampler, text = Sampler(options, END), []
    while len(text) < 12 and (token := sampler.choose(model(tuple(text)))) != END:
        text.append(token)
    beams, moved = search(model, options, most=12)
    # one beam keeps the best continuation; it may go on past an end that is not the best text of all
    best = beams.best(1)[0].tokens
    assert text[: len(best)] == best or best[: len(text)] == text
    assert moved == 0


def test_a_beam_that_goes_on_keeps_its_place() -> None:
    """So the engine copies caches only over those of beams that were given up."""
    beams, texts = BeamSearch(GenerationConfig(num_beams=4), END, 12), [()]
    model = random_model(2, vocabulary=9)
    while not beams.done:
        step = beams.advance(np.stack([model(text) for text in texts]))
        for parent in set(step.parents):
            assert step.parents[parent] == parent
        texts = [(*texts[parent], token) for parent, token in zip(step.parents, step.tokens, strict=True)]


def test_a_search_that_is_cut_short_tells_the_beams_as_they_are() -> None:
    beams = BeamSearch(GenerationConfig(num_beams=2), END, 12)
    step = beams.advance(np.array([[0.0, 2.0, 1.0, -9.0]], np.float32))
    assert step.tokens == [1, 2]
    assert [text.tokens for text in beams.best(2)] == [[1], [2]]
