"""`generate` and `stream` against the original's greedy answers, and where an answer ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model.compiled import make_model
from model.golden_config import golden_config
from spark13b.config.sections import GenerationConfig
from spark13b.errors import InputError
from spark13b.infer import generate, stream
from spark13b.infer.decoder import Decoder
from spark13b.infer.native_decoder import NativeDecoder
from spark13b.model import SparkForCausalLM

Golden = dict[str, np.ndarray]
END = 5


@pytest.fixture(scope="module")
def model(golden_weights: Golden) -> SparkForCausalLM:
    """The golden model with window and context 64."""
    return make_model(golden_config(sparse_local_size=64), golden_weights)


@pytest.fixture(scope="module")
def prompt(golden: Golden) -> list[int]:
    """10 tokens; with 23 new ones or more the same graphs serve every test."""
    return golden["greedy/prompt"].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_greedy_answers_are_the_originals(
    penalty: float, golden: Golden, model: SparkForCausalLM, prompt: list[int]
) -> None:
    answer = generate(model, prompt, 40, end_id=END, repetition_penalty=penalty)
    assert prompt + answer == golden[f"greedy/rp{penalty}"].tolist()


def test_greedy_answers_after_a_prompt_read_in_blocks_are_the_originals(
    golden: Golden, golden_weights: Golden, prompt: list[int]
) -> None:
    model = make_model(golden_config(sparse_local_size=64), golden_weights, block=7)
    for penalty in (1.0, 1.2):
        answer = generate(model, prompt, 40, end_id=END, repetition_penalty=penalty)
        assert prompt + answer == golden[f"greedy/rp{penalty}"].tolist()


def test_the_penalties_make_a_difference_here(golden: Golden) -> None:
    assert golden["greedy/rp1.0"].tolist() != golden["greedy/rp1.2"].tolist()


def test_an_answer_stops_before_the_end_token(model: SparkForCausalLM, prompt: list[int]) -> None:
    whole = generate(model, prompt, 40)
    end = whole[12]
    assert generate(model, prompt, 40, end_id=end) == whole[: whole.index(end)]


def test_an_answer_may_be_empty(model: SparkForCausalLM, prompt: list[int]) -> None:
    first = generate(model, prompt, 40)[0]
    assert generate(model, prompt, 40, end_id=first) == []


def test_an_answer_has_at_most_the_asked_number_of_tokens(model: SparkForCausalLM, prompt: list[int]) -> None:
    whole = generate(model, prompt, 40)
    assert len(whole) == 40
    assert generate(model, prompt, 23) == whole[:23]


def test_an_answer_ends_where_the_context_is_full(model: SparkForCausalLM, prompt: list[int]) -> None:
    answer = generate(model, prompt, 1000)
    assert len(prompt) + len(answer) == 64
    assert answer[:40] == generate(model, prompt, 40)


def test_stream_gives_each_token_before_the_next_is_computed(
    model: SparkForCausalLM, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def counted(original: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def counting(self: Decoder, seats: Any, tokens: Any, positions: Any) -> np.ndarray:
            steps.append(tokens[0])
            return original(self, seats, tokens, positions)

        return counting

    for kind in (Decoder, NativeDecoder):  # whichever computes here
        monkeypatch.setattr(kind, "step", counted(kind.step))
    answer = stream(model, prompt, GenerationConfig(max_new_tokens=40), END)
    assert steps == []
    first = next(answer)
    assert steps == []  # the prompt's own logits gave it
    second = next(answer)
    assert steps == [first]
    rest = list(answer)
    # and the last token is fed to nobody
    assert steps == [first, second, *rest[:-1]]


def test_two_streams_of_one_model_at_a_time_do_not_disturb_each_other(
    model: SparkForCausalLM, prompt: list[int]
) -> None:
    other = prompt[::-1]
    alone = [generate(model, prompt, 40), generate(model, other, 40)]
    options = GenerationConfig(max_new_tokens=40)
    pairs = list(itertools.zip_longest(stream(model, prompt, options), stream(model, other, options)))
    assert [list(answer) for answer in zip(*pairs, strict=True)] == alone


def test_a_stream_that_is_left_early_does_no_harm_to_the_next(model: SparkForCausalLM, prompt: list[int]) -> None:
    whole = generate(model, prompt, 40)
    answer = stream(model, prompt[::-1], GenerationConfig(max_new_tokens=40))
    next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert generate(model, prompt, 40) == whole


def test_sampled_answers_repeat_with_the_seed_and_change_without(model: SparkForCausalLM, prompt: list[int]) -> None:
    def sampled(seed: int) -> list[int]:
        return generate(model, prompt, 40, do_sample=True, temperature=2.0, top_k=50, top_p=0.9, seed=seed)

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the prompt is empty"),
        ([1] * 64, "the prompt has 64 tokens, the context holds 64"),
        ([1, 512, 2], "token id 512 is outside the model's vocabulary of 512"),
        ([1, 2, -1], "token id -1 is outside"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused(ids: list[int], message: str, model: SparkForCausalLM) -> None:
    with pytest.raises(InputError, match=message) as caught:
        generate(model, ids)
    assert caught.value.fix


def test_a_misspelt_option_is_refused(model: SparkForCausalLM, prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="temprature"):
        generate(model, prompt, temprature=0.5)


def test_the_package_offers_the_functions_also_after_their_module_was_imported() -> None:
    import spark13b.infer.generation as module
    from spark13b import infer

    assert infer.stream is module.stream
    assert infer.generate is module.generate
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        infer.nothing  # noqa: B018
