"""Prompts that begin like a text before are read from where they differ, and are answered as if read whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from itertools import count, repeat
from typing import Any

import numpy as np
import pytest

from infer.small_model import native_model, small_model
from model.numpy_model import NumpyModel
from spark13b.config.sections import GenerationConfig
from spark13b.infer.decoder import Decoder
from spark13b.infer.decoding import READING
from spark13b.infer.engine import Engine
from spark13b.infer.held import HeldTexts
from spark13b.infer.native_model import NativeModel
from spark13b.infer.requests import Generation, Request
from spark13b.model import SparkForCausalLM
from spark13b.native.library import Library

Model = SparkForCausalLM | NativeModel
Pair = tuple[Model, NumpyModel]

TEXT = np.random.default_rng(7).integers(1, 37, 200).tolist()


@pytest.fixture(scope="module", params=["native", "mindspore"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Window 64, context 160."""
    found: Pair = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def mindspore() -> Pair:
    return small_model(window=64, context=160)


@pytest.fixture(scope="module")
def native(native_library: Library) -> Pair:
    return native_model(native_library, window=64, context=160)


@cache
def mindspore_decoder(*size: Any) -> Decoder:
    """Compiled once for each size; where texts are, every engine knows for itself."""
    return Decoder(*size)


def engine_of(pair: Pair, seats: int) -> Engine:
    """An engine with the decoder of that model: one that MindSpore holds would get the native one, too."""
    model = pair[0]
    if isinstance(model, NativeModel):
        return Engine(model, seats=seats, chunk=16, reuse=True)
    return Engine(model, seats=seats, chunk=16, reuse=True, make_decoder=mindspore_decoder)


def ask(engine: Engine, prompt: list[int], **options: Any) -> Generation:
    options = {"max_new_tokens": 6} | options
    generation = engine.add(Request(prompt, GenerationConfig(**options), 0))
    while not generation.done:
        engine.step()
    return generation


def expect(model: NumpyModel, answer: Generation) -> None:
    """The tokens of the full pass, and their log-probabilities."""
    text = list(answer.request.prompt)
    for token in answer.tokens:
        logits = model.logits(np.array([text]))[0, -1]
        assert token.id == logits.argmax()
        logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert token.logprob == pytest.approx(logprobs[token.id], abs=1e-4)
        text.append(token.id)


def ids(answer: Generation) -> list[int]:
    return [token.id for token in answer.tokens]


def test_a_conversation_is_read_from_its_last_answer_on(pair: Pair) -> None:
    engine = engine_of(pair, 1)
    first = ask(engine, TEXT[:20])
    assert first.reused == 0
    # the last token of the answer was chosen, and never went into the ring
    second = ask(engine, TEXT[:20] + ids(first) + TEXT[20:25])
    assert second.reused == 20 + len(first.tokens) - 1
    third = ask(engine, [*second.request.prompt, *ids(second), 5])
    assert third.reused == len(second.request.prompt) + len(second.tokens) - 1
    for answer in (first, second, third):
        expect(pair[1], answer)
    assert engine.pace.reused_tokens == second.reused + third.reused


def test_the_same_prompt_again_reads_one_token(pair: Pair) -> None:
    engine = engine_of(pair, 1)
    for _ in range(2):
        answer = ask(engine, TEXT[:30])
        expect(pair[1], answer)
    assert answer.reused == 29


def test_another_prompt_goes_on_where_it_differs_and_few_tokens_are_not_worth_it(pair: Pair) -> None:
    engine = engine_of(pair, 1)
    ask(engine, TEXT[:40])
    other = ask(engine, [*TEXT[:17], 0, 0, 3])
    assert other.reused == 17
    expect(pair[1], other)
    short = ask(engine, [*TEXT[:15], 1, 1])
    assert short.reused == 0
    expect(pair[1], short)


def test_a_text_that_filled_its_ring_goes_on_at_its_end_alone(pair: Pair) -> None:
    """64 slots: of 90 tokens the first are gone."""
    engine = engine_of(pair, 1)
    long = ask(engine, TEXT[:90])
    expect(pair[1], long)
    onwards = ask(engine, [*TEXT[:90], *ids(long), 7])
    assert onwards.reused == 90 + len(long.tokens) - 1
    expect(pair[1], onwards)
    back = ask(engine, TEXT[:80])
    assert back.reused == 0
    expect(pair[1], back)


def test_conversations_that_take_turns_keep_their_seats(pair: Pair) -> None:
    engine = engine_of(pair, 2)
    texts = [TEXT[:20], TEXT[30:55]]
    for turn in range(3):
        for number, text in enumerate(texts):
            answer = ask(engine, text)
            expect(pair[1], answer)
            assert (answer.reused > 0) == (turn > 0)
            texts[number] = [*text, *ids(answer), turn]


def test_as_many_conversations_as_seats_stay_also_where_they_come_in_company(native: Pair) -> None:
    engine = engine_of(native, 4)
    texts = [TEXT[start : start + 24] for start in range(0, 100, 25)]
    for turn in range(3):
        for two in (texts[:2], texts[2:]):
            answers = [engine.add(Request(text, GenerationConfig(max_new_tokens=6), 0)) for text in two]
            while engine.busy:
                engine.step()
            assert [answer.reused for answer in answers] == ([23, 23] if turn else [0, 0])
            for answer in answers:
                expect(native[1], answer)


def test_who_makes_room_for_a_prompt_spares_the_text_that_it_goes_on_from(pair: Pair) -> None:
    engine = engine_of(pair, 2)
    oldest, other = (
        engine.add(Request(text, GenerationConfig(max_new_tokens=6), 0)) for text in (TEXT[:30], TEXT[40:60])
    )
    while engine.busy:
        engine.step()
    engine.add(Request(TEXT[80:120], GenerationConfig(max_new_tokens=40), 0))  # alone, in the reading seat
    for _ in range(8):
        engine.step()
    onwards = engine.add(Request([*TEXT[:30], *ids(oldest), 3], GenerationConfig(max_new_tokens=6), 0))
    while not onwards.done:
        engine.step()
    assert other.done and onwards.reused == 30 + len(oldest.tokens) - 1
    expect(pair[1], onwards)


def test_a_text_that_still_grows_lends_its_beginning(pair: Pair) -> None:
    engine = engine_of(pair, 3)
    first = engine.add(Request(TEXT[:30], GenerationConfig(max_new_tokens=25), 0))
    for _ in range(6):
        engine.step()
    assert not first.done
    same = engine.add(Request(TEXT[:30], GenerationConfig(max_new_tokens=9), 0))
    other = engine.add(Request([*TEXT[:22], 2, 1], GenerationConfig(max_new_tokens=9), 0))
    while engine.busy:
        engine.step()
    assert (same.reused, other.reused) == (29, 22)
    for answer in (first, same, other):
        expect(pair[1], answer)


@pytest.mark.parametrize("length", [20, 57, 58, 59, 75])
def test_a_text_that_rests_is_whole_while_others_grow_beside_it(pair: Pair, length: int) -> None:
    """Of 64 slots it fills fewer, all, or all more than once."""
    engine = engine_of(pair, 3)
    texts = [TEXT[:length], TEXT[80:100], TEXT[110:125]]
    first, *others = (
        engine.add(Request(text, GenerationConfig(max_new_tokens=tokens), 0))
        for text, tokens in zip(texts, (7, 20, 22), strict=True)
    )
    while engine.busy:
        engine.step()
    onwards = ask(engine, [*texts[0], *ids(first), 3])
    assert onwards.reused == length + 6
    for answer in (first, *others, onwards):
        expect(pair[1], answer)
    differs = ask(engine, [*texts[0][:-2], 1, 2])
    expect(pair[1], differs)


def test_a_conversation_stays_in_one_cache_however_long_it_becomes(native_library: Library) -> None:
    """Caches have 256, 1024 and more slots where texts are in company."""
    model, twin = native_model(native_library, window=2048, context=2048)
    engine = Engine(model, seats=1, reuse=True)
    ask(engine, (TEXT * 2)[:240])
    longer = ask(engine, (TEXT * 2)[:300])
    assert longer.reused == 240
    expect(twin, longer)


def test_guesses_and_beams_work_on_texts_that_were_read_before(native: Pair) -> None:
    engine = Engine(native[0], seats=3, chunk=16, reuse=True)
    repeated = TEXT[:12] * 3
    plain = ask(Engine(native[0], seats=3, chunk=16), repeated, max_new_tokens=20)
    ask(engine, repeated[:30], draft_tokens=4)
    guessed = ask(engine, repeated, draft_tokens=4, max_new_tokens=20)
    assert guessed.reused >= 30
    assert ids(guessed) == ids(plain)
    beams = ask(engine, repeated, num_beams=3)
    assert beams.reused == len(repeated) - 1
    assert ids(beams) == ids(ask(Engine(native[0], seats=3, chunk=16), repeated, num_beams=3))


def test_a_prompt_that_was_left_half_read_is_there_as_far_as_it_came(native: Pair) -> None:
    engine = Engine(native[0], seats=1, chunk=16, reuse=True)
    left = engine.add(Request(TEXT[:60], GenerationConfig(max_new_tokens=3)))
    engine.step()
    engine.step()
    engine.cancel(left)
    again = ask(engine, TEXT[:60])
    assert again.reused == 32
    expect(native[1], again)


class Interrupted(Exception):
    """As Ctrl-C."""


@pytest.mark.parametrize("call", ["read", "step", "copy"])
@pytest.mark.parametrize("length", [40, 60, 90])
def test_what_a_call_wrote_that_was_broken_off_is_taken_for_no_text(
    native: Pair, call: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python sees Ctrl-C when the library has come back: its rings are written, and nobody was told."""
    engine = Engine(native[0], seats=2, chunk=16, reuse=True)
    texts = [TEXT[:length], TEXT[60:99]]
    for text in texts:
        ask(engine, text)
    (room,) = engine._rooms.values()
    real, left = getattr(room.seating.decoder, call), 2 if call == "read" else 1

    def breaks_off(*inputs: Any) -> Any:
        nonlocal left
        left -= 1
        result = real(*inputs)
        if not left:
            raise Interrupted
        return result

    with monkeypatch.context() as patched:
        patched.setattr(room.seating.decoder, call, breaks_off)
        other = engine.add(Request([*TEXT[:20], *TEXT[100:150]], GenerationConfig(max_new_tokens=9), 0))
        with pytest.raises(Interrupted):
            while engine.busy:
                engine.step()
    engine.cancel(other)
    for text in (*texts, list(other.request.prompt)):
        expect(native[1], ask(engine, text))


def test_an_engine_goes_on_wherever_ctrl_c_meets_it(native: Pair) -> None:
    """At every 7th line of Python between a prompt and its answer."""
    texts = [TEXT[:40], TEXT[:20] + TEXT[100:140]]
    for place in count(1, 7):
        engine = Engine(native[0], seats=2, chunk=16, reuse=True)
        ask(engine, texts[0])
        generation = engine.add(Request(texts[1], GenerationConfig(max_new_tokens=2), 0))
        company = engine.add(Request(TEXT[70:80], GenerationConfig(max_new_tokens=3), 0))
        lines = repeat(None, place)

        def at_line(frame: Any, event: str, what: Any, lines: Iterator[None] = lines) -> Any:
            if event == "line" and next(lines, "end") == "end":
                raise Interrupted
            return at_line

        before = sys.gettrace()
        try:
            sys.settrace(lambda frame, *_: at_line if "/spark13b/infer/" in frame.f_code.co_filename else None)
            while engine.busy:
                engine.step()
            return
        except Interrupted:
            pass
        finally:
            sys.settrace(before)
        engine.cancel(generation)
        engine.cancel(company)
        assert not engine.busy
        assert not any(len(room.seating) for room in engine._rooms.values())
        for text in texts:
            expect(native[1], ask(engine, text, max_new_tokens=2))


def test_without_reuse_every_prompt_is_read_whole(native: Pair) -> None:
    engine = Engine(native[0], seats=2, chunk=16)
    answers = [ask(engine, TEXT[:30]) for _ in range(2)]
    assert [answer.reused for answer in answers] == [0, 0]
    assert answers[0].tokens == answers[1].tokens


def test_what_is_held_elsewhere_is_not_lost() -> None:
    held = HeldTexts(slots=8)
    held.write(READING, [1, 2, 3, 4], 0)
    assert held.lost(READING, 1) == 3
    held.copy(READING, 2)
    held.write(2, [5], 4)
    assert held.lost(READING, 1) == 0
    held.write(2, [9], 3)  # a guess that was wrong
    assert held.lost(READING, 1) == 3
    assert held.shared(2, [1, 2, 3, 9, 7]) == 4
    assert held.least_missed([2, 3, READING]) == 3
    assert held.least_missed([2, READING]) == READING
    held.copy(2, 1)
    assert held.least_missed([READING, 2]) == 2
