"""Answers made together equal those made alone and the full pass; who waits, who leaves, and what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infer.small_model import random_texts, small_model
from model.numpy_model import NumpyModel
from spark13b.config.sections import GenerationConfig
from spark13b.errors import InputError
from spark13b.infer.beams import BeamSearch
from spark13b.infer.decoder import Decoder
from spark13b.infer.engine import Engine
from spark13b.infer.requests import Generation, Request
from spark13b.model import SparkForCausalLM

PROMPTS = random_texts(5, 20, 1, 33, 17, 40, 9, 12)
LENGTHS = (20, 5, 30, 12, 9, 3, 25, 14)


@pytest.fixture(scope="module")
def pair() -> tuple[SparkForCausalLM, NumpyModel]:
    """Window 8, context 64."""
    return small_model(window=8, context=64)


@pytest.fixture(scope="module")
def engine(pair: tuple[SparkForCausalLM, NumpyModel]) -> Engine:
    """Three seats, prompts in parts of 16 tokens, computed by MindSpore; idle between tests."""
    return Engine(pair[0], seats=3, chunk=16, make_decoder=Decoder)


@pytest.fixture(scope="module")
def expected(pair: tuple[SparkForCausalLM, NumpyModel]) -> list[list[int]]:
    """The greedy answers by NumPy's full forward pass."""
    answers = []
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        text = list(prompt)
        for _ in range(length):
            text.append(int(pair[1].logits(np.array([text]))[0, -1].argmax()))
        answers.append(text[len(prompt) :])
    return answers


def request(prompt: list[int], logprobs: int | None = None, **options: Any) -> Request:
    return Request(prompt, GenerationConfig(**options), logprobs)


def ids(generation: Generation) -> list[int]:
    return [token.id for token in generation.tokens]


def finish(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def is_idle(engine: Engine) -> bool:
    return engine.running == engine.waiting == 0 and not any(len(room.seating) for room in engine._rooms.values())


def test_eight_prompts_of_all_lengths_in_three_seats_get_the_answers_of_the_full_pass(
    engine: Engine, expected: list[list[int]]
) -> None:
    answers = [
        engine.add(request(prompt, max_new_tokens=length)) for prompt, length in zip(PROMPTS, LENGTHS, strict=True)
    ]
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, engine.running)
    assert [ids(answer) for answer in answers] == expected
    assert {answer.finish_reason for answer in answers} == {"length"}
    assert most == 3
    assert is_idle(engine)


def test_the_same_in_eight_seats_and_one_by_one_to_the_last_bit(
    pair: tuple[SparkForCausalLM, NumpyModel], engine: Engine
) -> None:
    """Log-probabilities tell differences that the choice of a token would hide."""
    wide = Engine(pair[0], seats=8)
    asked = [
        request(prompt, logprobs=3, max_new_tokens=length) for prompt, length in zip(PROMPTS, LENGTHS, strict=True)
    ]
    together = [wide.add(one) for one in asked]
    finish(wide)
    for one, answer in zip(asked, together, strict=True):
        alone = wide.add(one)
        finish(wide)
        assert alone.tokens == answer.tokens


def test_answers_come_and_go_while_others_run(engine: Engine, expected: list[list[int]]) -> None:
    answers = []
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        answers.append(engine.add(request(prompt, max_new_tokens=length)))
        for _ in range(4):
            engine.step()
    finish(engine)
    assert [ids(answer) for answer in answers] == expected


def test_pieces_make_up_the_answers_and_the_first_one_comes_before_the_second_is_computed(
    engine: Engine, expected: list[list[int]]
) -> None:
    answer = engine.add(request(PROMPTS[0], max_new_tokens=20))
    (piece,) = engine.step()
    assert [token.id for token in piece.tokens] == expected[0][:1]
    assert len(answer.tokens) == 1
    rest = []
    while engine.busy:
        rest += [token.id for piece in engine.step() for token in piece.tokens]
    assert rest == expected[0][1:]


class TestCancelling:
    def test_frees_the_seat_at_once_and_keeps_what_there_is(self, engine: Engine, expected: list[list[int]]) -> None:
        answers = [engine.add(request(PROMPTS[index], max_new_tokens=LENGTHS[index])) for index in (0, 2, 6, 7)]
        for _ in range(6):
            engine.step()
        assert engine.waiting == 1
        engine.cancel(answers[1])
        assert answers[1].finish_reason == "cancelled"
        assert ids(answers[1]) == expected[2][: len(answers[1].tokens)]
        assert len(answers[1].tokens) > 0
        engine.step()
        assert engine.waiting == 0
        finish(engine)
        assert [ids(answers[index]) for index in (0, 2, 3)] == [expected[0], expected[6], expected[7]]
        assert is_idle(engine)

    def test_takes_a_prompt_that_waits_or_is_being_read(self, engine: Engine, expected: list[list[int]]) -> None:
        first, second = (engine.add(request(PROMPTS[index], max_new_tokens=5)) for index in (5, 3))
        engine.step()  # 16 of 40 tokens
        engine.cancel(second)
        engine.cancel(first)
        engine.cancel(first)
        assert (first.finish_reason, second.finish_reason) == ("cancelled", "cancelled")
        assert is_idle(engine)
        again = engine.add(request(PROMPTS[0], max_new_tokens=20))
        finish(engine)
        assert ids(again) == expected[0]


class TestSampling:
    def test_depends_on_the_seed_and_on_nothing_else(self, engine: Engine) -> None:
        def sampled(seed: int) -> Request:
            return request(PROMPTS[0], max_new_tokens=20, do_sample=True, temperature=2.0, seed=seed)

        alone = engine.add(sampled(1))
        finish(engine)
        beside = [engine.add(sampled(seed)) for seed in (2, 1, 3)]
        finish(engine)
        assert ids(beside[1]) == ids(alone)
        assert len({tuple(ids(answer)) for answer in beside}) == 3

    def test_log_probabilities_are_the_models_own(
        self, engine: Engine, pair: tuple[SparkForCausalLM, NumpyModel]
    ) -> None:
        answer = engine.add(request(PROMPTS[0], 2, max_new_tokens=6, repetition_penalty=5.0))
        finish(engine)
        text = PROMPTS[0] + ids(answer)
        logits = pair[1].logits(np.array([text]))[0].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for place, token in enumerate(answer.tokens, len(PROMPTS[0]) - 1):
            assert token.logprob == pytest.approx(logprobs[place, token.id], abs=1e-4)
            best = np.argsort(-logprobs[place])[:2]
            assert [one for one, _ in token.top] == best.tolist()


class TestBeams:
    @pytest.mark.parametrize("penalty", [1.0, 1.4])
    def test_equal_a_search_by_full_forward_passes(
        self, penalty: float, pair: tuple[SparkForCausalLM, NumpyModel], engine: Engine
    ) -> None:
        options = GenerationConfig(num_beams=3, max_new_tokens=14, repetition_penalty=penalty)
        beams, texts = BeamSearch(options, None, 14), [PROMPTS[0]]
        while not beams.done:
            step = beams.advance(np.stack([pair[1].logits(np.array([text]))[0, -1] for text in texts]))
            texts = [[*texts[parent], token] for parent, token in zip(step.parents, step.tokens, strict=True)]
        answer = engine.add(Request(PROMPTS[0], options))
        other = engine.add(request(PROMPTS[1], max_new_tokens=5))  # waits for seats
        finish(engine)
        assert [ids(answer), *map(ids, answer.alternatives)] == [text.tokens for text in beams.best(3)]
        assert answer.score == pytest.approx(beams.best(1)[0].score, abs=1e-4)
        assert other.finish_reason == "length"
        assert is_idle(engine)

    def test_are_refused_where_there_are_too_few_seats(self, engine: Engine) -> None:
        with pytest.raises(InputError, match="4 beams need as many seats, there are 3"):
            engine.add(request(PROMPTS[0], num_beams=4))

    def test_can_be_cancelled(self, engine: Engine) -> None:
        answer = engine.add(request(PROMPTS[0], num_beams=3, max_new_tokens=14))
        for _ in range(4):
            engine.step()
        engine.cancel(answer)
        assert answer.finish_reason == "cancelled"
        assert len(answer.tokens) == 4
        assert is_idle(engine)


def test_texts_of_different_length_have_caches_of_their_own() -> None:
    """So that a short text does not pay for a long one's, nor its numbers depend on it."""
    model, twin = small_model(window=1024, context=2048, num_layers=1)
    engine = Engine(model, seats=2)
    short = engine.add(request(PROMPTS[0], max_new_tokens=8))
    long = engine.add(request(PROMPTS[5] * 8, max_new_tokens=8))
    engine.step()
    engine.step()
    finish(engine)
    assert sorted(engine._rooms) == [256, 1024]
    for answer in (short, long):
        text = list(answer.request.prompt) + ids(answer)
        full = twin.logits(np.array([text]))[0].argmax(-1)
        assert full[len(answer.request.prompt) - 1 : -1].tolist() == ids(answer)
