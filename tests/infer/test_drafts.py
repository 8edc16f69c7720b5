"""Guessed tokens change no answer: whatever was guessed, each token is the one that was chosen without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.small_model import native_model, random_texts
from infer.small_run import write_small_run
from spark13b.config.sections import GenerationConfig
from spark13b.errors import InputError
from spark13b.infer.drafts import Drafts
from spark13b.infer.engine import Engine
from spark13b.infer.native_decoder import NativeDecoder
from spark13b.infer.native_model import NativeModel
from spark13b.infer.requests import Generation, Request
from spark13b.infer.session import Session, find_model
from spark13b.native.library import Found, Library
from spark13b.run_folder import weights_of

DRAWING: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 2.0},
    {"do_sample": True, "temperature": 0.3, "seed": 5},
    {"min_new_tokens": 30},
]


@pytest.fixture(scope="module")
def model(native_library: Library) -> NativeModel:
    """Its greedy answers soon repeat themselves."""
    return native_model(native_library, window=400, context=400)[0]


def answers(model: NativeModel, prompts: list[list[int]], seats: int, **options: Any) -> tuple[list[Generation], int]:
    """All of them, and the steps that it took."""
    engine = Engine(model, seats=seats, chunk=16, end_id=3)
    requests = [Request(prompt, GenerationConfig(**options), 2) for prompt in prompts]
    generations = [engine.add(request) for request in requests]
    steps = 0
    while engine.busy:
        pieces = engine.step()
        steps += any(piece.tokens for piece in pieces)
    assert engine.pace.new_tokens == sum(len(one.tokens) - (one.finish_reason == "length") for one in generations)
    return generations, steps


@pytest.mark.parametrize("options", DRAWING)
@pytest.mark.parametrize("seats", [1, 3])
def test_an_answer_with_guesses_is_the_one_without_to_the_last_bit_of_its_logprobs(
    options: dict[str, Any], seats: int, model: NativeModel
) -> None:
    prompts = [*random_texts(5, 20, 1), [7, 8, 9, 10] * 6]
    options = {"max_new_tokens": 150, **options}
    plain, slow = answers(model, prompts, seats, **options)
    for most in (1, 4, 15):
        guessed, steps = answers(model, prompts, seats, **options, draft_tokens=most)
        for one, other in zip(plain, guessed, strict=True):
            assert one.tokens == other.tokens  # ids and log-probabilities
            assert one.finish_reason == other.finish_reason
        if not options.get("do_sample") and not options.get("repetition_penalty"):
            assert steps < slow * (0.75 if most == 1 else 0.5)


def test_several_tokens_of_a_text_in_one_step_have_the_bits_of_one_after_the_other(native_library: Library) -> None:
    """In company of other texts, too."""
    decoder = NativeDecoder(native_model(native_library, window=64, context=64)[0], 64, 2, 32)
    one, two = random_texts(40, 30)
    decoder.read(two[:9], 0)
    decoder.copy(0, 2)
    decoder.read(one[:20], 0)
    decoder.copy(0, 1)
    alone = [decoder.step([0], [one[at]], [at])[0] for at in range(20, 33)]
    of_two = [decoder.step([0], [two[9]], [9])[0] for _ in range(1) if decoder.copy(2, 0) is None]
    together = decoder.step([1] * 13 + [2], [*one[20:33], two[9]], [*range(20, 33), 9])
    np.testing.assert_array_equal(together, [*alone, *of_two])
    with pytest.raises(ValueError, match="the same for two texts"):
        decoder.step([1, 1], [1, 2], [20, 22])


def test_guesses_are_what_followed_the_last_three_tokens_and_go_round_at_the_end() -> None:
    drafts = Drafts([1, 2, 3, 4, 5, 6, 1, 2, 3], 15)
    assert drafts.guess(15) == [4, 5]
    drafts.judge(2, 2)
    assert drafts.guess(15) == [4, 5, 6, 1]
    assert drafts.guess(1) == [4]
    drafts.judge(4, 4)
    assert drafts.guess(15) == [4, 5, 6, 1, 2, 3, 4, 5]
    drafts.judge(8, 3)
    assert drafts.guess(15) == [4, 5, 6, 1]
    drafts.add(9)
    assert drafts.guess(15) == []


def test_wrong_guesses_become_rare() -> None:
    """Of 1000 steps whose guesses all are wrong 21 have one, which costs 2 % where three rows take twice as long."""
    drafts = Drafts([1, 2, 3, 1, 2, 3], 15)
    asked = 0
    for _ in range(1000):
        if guesses := drafts.guess(15):
            drafts.judge(len(guesses), 0)
            asked += 1
    assert asked <= 21


def test_guesses_need_the_native_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_small_run(tmp_path / "run")
    monkeypatch.setattr("spark13b.infer.loading.find_library", lambda: Found(None, "it is not built"))
    monkeypatch.setattr("spark13b.infer.native_decoder.find_library", lambda: Found(None, "it is not built"))
    options = {"generation.draft_tokens": 4}
    with pytest.raises(InputError, match="checked by the native library alone, and it is not built"):
        Session(find_model(weights_of(run), str(run / "preset.yaml"), run / "tokenizer", options, []))
