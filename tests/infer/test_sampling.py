"""The choice of a token against shared/SPEC.md, section 8: a naive rewriting of it, and cases made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark13b.config.sections import GenerationConfig
from spark13b.infer import sampling
from spark13b.infer.sampling import Sampler, logprobs_of

Array = np.ndarray


def options(**values: Any) -> GenerationConfig:
    return GenerationConfig(**values)


def logits(*probabilities: float) -> Array:
    return np.log(np.array(probabilities)).astype(np.float32)


def nucleus(scores: Array, settings: GenerationConfig) -> Array:
    """The distribution over the whole vocabulary that `sampling.nucleus` gives, (V,)."""
    tokens, weights = sampling.nucleus(scores, settings)
    result = np.zeros(len(scores))
    result[tokens] = weights / weights.sum()
    return result


def naive_distribution(scores: Array, temperature: float, top_k: int, top_p: float) -> Array:
    """Section 8 after the penalty, with Python's own sums: temperature, top_k, top_p, softmax."""
    scaled = [float(score) / temperature for score in scores]
    ranked = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    if top_k:
        ranked = ranked[:top_k]
    powers = [np.exp(scaled[token] - scaled[ranked[0]]) for token in ranked]
    kept, total = [], 0.0
    for token, power in zip(ranked, powers, strict=True):
        kept.append((token, power))
        total += power / sum(powers)
        if total >= top_p:
            break
    result = np.zeros(len(scores))
    for token, power in kept:
        result[token] = power / sum(power for _, power in kept)
    return result


# Numbers on a grid of eighths: equal ones are common, and no sum comes near top_p by rounding alone.
scores = st.lists(st.integers(-24, 24), min_size=1, max_size=40).map(lambda eighths: np.array(eighths, np.float32) / 8)


@given(scores, st.sampled_from([0.3, 1.0, 2.5]), st.integers(0, 45), st.sampled_from([0.017, 0.313, 0.737, 0.999, 1.0]))
def test_the_distribution_equals_the_naive_one(scores: Array, temperature: float, top_k: int, top_p: float) -> None:
    found = nucleus(scores, options(temperature=temperature, top_k=top_k, top_p=top_p))
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, naive_distribution(scores, temperature, top_k, top_p), atol=1e-12)


@pytest.mark.parametrize("first", [1, 2, 5])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_a_nucleus_found_among_few_tokens_is_that_of_the_whole_vocabulary(
    first: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_FIRST", first)
    for seed in range(5):
        scores = (np.random.default_rng(seed).integers(-24, 24, 300) / 8).astype(np.float32)
        np.testing.assert_allclose(
            nucleus(scores, options(top_p=top_p)), naive_distribution(scores, 1.0, 0, top_p), atol=1e-12
        )


@given(scores, st.integers(1, 45))
def test_top_k_keeps_the_k_most_probable_and_the_lower_id_of_equal_ones(scores: Array, k: int) -> None:
    kept = nucleus(scores, options(top_k=k)) > 0
    assert kept.sum() == min(k, len(scores))
    ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    assert sorted(ranked[:k]) == kept.nonzero()[0].tolist()


@pytest.mark.parametrize("top_k", [4, 5, 1000])
def test_top_k_of_the_whole_vocabulary_or_more_keeps_all(top_k: int) -> None:
    all_of_them = logits(0.4, 0.3, 0.2, 0.1)
    np.testing.assert_array_equal(nucleus(all_of_them, options(top_k=top_k)), nucleus(all_of_them, options()))


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, 1), (0.49, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.875, 3), (0.9, 4), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_whose_sum_reaches_it_and_no_more_at_the_very_boundary(top_p: float, kept: int) -> None:
    # powers of two: 1/2, 1/4, 1/8, 1/8 and their sums are exact
    scores = (np.array([8, 4, 2, 2]) / 16).astype(np.float64)
    found = nucleus(np.log2(scores) * np.log(2), options(top_p=top_p))
    assert (found > 0).sum() == kept
    np.testing.assert_allclose(found[:kept], scores[:kept] / scores[:kept].sum())


def test_top_p_looks_at_the_whole_vocabulary() -> None:
    """The original looks at the best 200 only: of 1000 equal tokens 900 must stay for 0.9."""
    assert (nucleus(np.zeros(1000, np.float32), options(top_p=0.8999)) > 0).sum() == 900


def test_top_p_counts_in_what_top_k_left() -> None:
    found = nucleus(logits(0.4, 0.3, 0.2, 0.1), options(top_k=2, top_p=0.5))
    np.testing.assert_allclose(found, [1, 0, 0, 0])  # 0.4 / 0.7 reaches a half; 0.4 of all would not


def test_temperature_comes_before_top_p() -> None:
    scores = logits(0.5, 0.3, 0.2)
    assert (nucleus(scores, options(top_p=0.55)) > 0).sum() == 2
    assert (nucleus(scores, options(top_p=0.55, temperature=0.5)) > 0).sum() == 1
    assert (nucleus(scores, options(top_p=0.55, temperature=100)) > 0).sum() == 2


@pytest.mark.parametrize("temperature", [1e-4, 1e-300])
def test_a_temperature_near_zero_takes_the_best_token_without_overflow(temperature: float) -> None:
    np.testing.assert_array_equal(nucleus(logits(0.3, 0.4, 0.3), options(temperature=temperature)), [0, 1, 0])


class TestPenalty:
    def test_begins_with_the_penalty_and_grows_by_the_increase_with_each_further_use(self) -> None:
        sampler = Sampler(options(repetition_penalty=1.2, repetition_penalty_increase=0.25))
        # token 0 leads token 1 by 1.5: chosen, then 1.2 behind, 1.45, and 1.7, which is more than 1.5
        assert [sampler.choose(np.array([1.5, 0.0, -9])) for _ in range(5)] == [0, 0, 0, 1, 0]

    def test_is_counted_for_every_token_by_itself(self) -> None:
        sampler = Sampler(options(repetition_penalty=2.0, repetition_penalty_increase=0.5))
        scores = np.array([3.0, 2.5, 2.0])
        # 3 2.5 2 | 1 2.5 2 | 1 .5 2 | 1 .5 0 | .5 .5 0 (ties: lower id) | 0 .5 0
        assert [sampler.choose(scores) for _ in range(6)] == [0, 1, 2, 0, 0, 1]

    def test_matches_a_naive_vector_of_penalties_over_many_steps(self) -> None:
        rng = np.random.default_rng(0)
        sampler = Sampler(options(repetition_penalty=0.7))
        penalties = np.zeros(12)
        for _ in range(300):
            scores = rng.standard_normal(12).astype(np.float32)
            token = int((scores - penalties).argmax())
            assert sampler.choose(scores) == token
            penalties[token] = 0.7 if penalties[token] == 0 else penalties[token] + 0.1

    def test_of_1_is_off_however_great_the_increase(self) -> None:
        sampler = Sampler(options(repetition_penalty=1.0, repetition_penalty_increase=5.0))
        assert [sampler.choose(np.array([0.5, 0.4])) for _ in range(4)] == [0, 0, 0, 0]

    def test_of_0_begins_anew_with_every_use(self) -> None:
        """By the letter of section 8: p[t] stays 0, so that it is set to the penalty, 0, each time."""
        sampler = Sampler(options(repetition_penalty=0.0, repetition_penalty_increase=5.0))
        assert [sampler.choose(np.array([0.5, 0.4])) for _ in range(4)] == [0, 0, 0, 0]

    def test_comes_before_the_temperature(self) -> None:
        sampler = Sampler(options(do_sample=True, temperature=10, top_k=1, repetition_penalty=1.2))
        # a lead of 1.5 is more than the penalty; after a division by 10 it would be less
        assert [sampler.choose(np.array([1.5, 0.0])) for _ in range(2)] == [0, 0]

    def test_comes_before_top_k(self) -> None:
        sampler = Sampler(options(do_sample=True, top_k=1, repetition_penalty=2.0))
        assert [sampler.choose(np.array([1.5, 0.0])) for _ in range(3)] == [0, 1, 0]

    def test_leaves_the_callers_logits_alone(self) -> None:
        sampler, scores = Sampler(options(repetition_penalty=2.0)), np.array([1.5, 0.0])
        sampler.choose(scores)
        sampler.choose(scores)
        np.testing.assert_array_equal(scores, [1.5, 0.0])


def test_without_sampling_the_most_probable_token_is_taken_whatever_else_is_set() -> None:
    sampler = Sampler(options(do_sample=False, temperature=50, top_k=3, top_p=0.5, seed=3))
    assert {sampler.choose(logits(0.2, 0.3, 0.26, 0.24)) for _ in range(50)} == {1}


def test_equal_seeds_draw_equal_tokens_and_others_do_not() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(options(do_sample=True, seed=seed))
        return [sampler.choose(np.zeros(100)) for _ in range(20)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_k": 5}, {"temperature": 1.7, "top_p": 0.8}])
def test_many_draws_are_distributed_as_the_formula_says(settings: dict[str, Any]) -> None:
    """Pearson's chi-square; with 7 degrees of freedom or fewer it passes 30 once in ten thousand times (fixed seed)."""
    scores = logits(0.3, 0.2, 0.15, 0.12, 0.1, 0.06, 0.04, 0.03)
    expected = naive_distribution(scores, **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings))
    sampler = Sampler(options(do_sample=True, seed=11, **settings))
    counts = np.bincount([sampler.choose(scores) for _ in range(20_000)], minlength=8)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert ((counts - 20_000 * expected)[possible] ** 2 / (20_000 * expected[possible])).sum() < 30


@given(scores, st.integers(0, 45))
def test_log_probabilities_are_those_of_the_softmax_best_first(scores: Array, top: int) -> None:
    exact = scores.astype(np.float64)
    expected = exact - np.log(np.exp(exact).sum())
    ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))[:top]
    logprob, best = logprobs_of(scores, len(scores) - 1, top)
    assert logprob == pytest.approx(expected[-1], abs=1e-9)
    assert [token for token, _ in best] == ranked
    np.testing.assert_allclose([value for _, value in best], expected[ranked], atol=1e-9)


def test_the_end_is_not_chosen_before_the_least_number_of_tokens() -> None:
    sampler = Sampler(options(min_new_tokens=2), end_id=0)
    assert [sampler.choose(np.array([2.0, 1.0])) for _ in range(4)] == [1, 1, 0, 0]
    drawn = Sampler(options(min_new_tokens=50, do_sample=True, temperature=0.5), end_id=0)
    assert {drawn.choose(np.array([9.0, 1.0])) for _ in range(50)} == {1}


def test_a_texts_draws_do_not_depend_on_those_of_others() -> None:
    scores = np.random.default_rng(0).standard_normal((40, 50))
    settings = options(do_sample=True, seed=5, repetition_penalty=1.2)
    alone, one, other = Sampler(settings), Sampler(settings), Sampler(options(do_sample=True, seed=6))
    expected = [alone.choose(row) for row in scores]
    found = []
    for row in scores:
        other.choose(row)
        found.append(one.choose(row))
    assert found == expected
