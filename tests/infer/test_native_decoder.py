"""Answers of the native library beside MindSpore's decoder, the full forward pass and the original's golden tokens."""

from __future__ import annotations

import os

import numpy as np
import pytest

from infer.small_model import native_model, random_texts, small_model
from infer.test_decoder import check_growth, read
from model.golden_config import golden_config
from spark13b.config.sections import GenerationConfig
from spark13b.infer import native_decoder
from spark13b.infer.decoder import Decoder
from spark13b.infer.decoding import READING
from spark13b.infer.engine import Engine
from spark13b.infer.native_decoder import NativeDecoder, describe, make_decoder, native_model_of, why_not
from spark13b.infer.requests import Request
from spark13b.model import SparkForCausalLM
from spark13b.native.library import Found, Library

Golden = dict[str, np.ndarray]


def test_texts_grow_past_the_window_as_in_the_full_pass(native_library: Library) -> None:
    model, twin = native_model(native_library, window=8, context=64)
    decoder = NativeDecoder(model, 8, 3, 16)
    check_growth(decoder, twin, random_texts(34, 37, 30), [2, 5, 1])
    check_growth(decoder, twin, random_texts(50, 20, 24), [33, 3, 9])
    check_growth(decoder, twin, random_texts(30, 30, 30), [16, 15, 17])


def test_prompts_and_steps_give_mindspores_logits(native_library: Library) -> None:
    model, _ = small_model(window=8, context=64)
    (text,) = random_texts(37)
    plain, native = Decoder(model, 8, 0, 16), NativeDecoder(native_model_of(model, native_library), 8, 0, 16)
    np.testing.assert_allclose(read(native, text[:27]), read(plain, text[:27]), atol=1e-4)
    for at in range(27, 37):
        expected = plain.step([READING], [text[at]], [at])
        np.testing.assert_allclose(native.step([READING], [text[at]], [at]), expected, atol=1e-4)


def test_the_reading_seat_goes_on_with_a_prompts_part_after_steps_and_gets_a_text_back(native_library: Library) -> None:
    model, twin = native_model(native_library, window=8, context=64)
    native = NativeDecoder(model, 8, 2, 16)
    (text,) = random_texts(40)
    expected = twin.logits(np.array([text]))[0]
    native.read(text[:5], 0)
    for at in range(5, 9):
        np.testing.assert_allclose(native.step([READING], [text[at]], [at])[0], expected[at], atol=1e-4)
    np.testing.assert_allclose(native.read(text[9:20], 9), expected[19], atol=1e-4)
    native.copy(READING, 2)
    native.read([1, 2, 3], 0)
    native.copy(2, READING)
    np.testing.assert_allclose(native.step([READING], [text[20]], [20])[0], expected[20], atol=1e-4)


def test_a_copy_takes_what_was_written_alone(native_library: Library) -> None:
    model, twin = native_model(native_library, window=64, context=64)
    native = NativeDecoder(model, 64, 2, 16)
    (text,) = random_texts(40)
    expected = twin.logits(np.array([text]))[0]
    read(native, text[:20])
    native._ring(1)[0][:] = np.nan
    native.copy(READING, 1)
    slots = native._ring(1)[0].reshape(-1, 64, model.config.head_size)
    assert np.isfinite(slots[:, :20]).all() and np.isnan(slots[:, 20:]).all()
    for at in range(20, 40):
        np.testing.assert_allclose(native.step([1], [text[at]], [at])[0], expected[at], atol=1e-4)
    native.copy(1, 2)
    native.copy(2, READING)
    slots = native._ring(READING)[0].reshape(-1, 64, model.config.head_size)
    np.testing.assert_array_equal(slots[:, :40], native._ring(1)[0].reshape(slots.shape)[:, :40])


def test_a_text_has_the_same_bits_alone_and_in_company(native_library: Library) -> None:
    native = NativeDecoder(native_model(native_library, window=8, context=64)[0], 8, 3, 16)
    one, two, three = random_texts(30, 34, 20)
    for seat, text in ((1, three), (2, two), (3, one)):
        read(native, text[:10])
        native.copy(READING, seat)
    for at in range(10, 20):
        together = native.step([1, 2, 3], [three[at], two[at], one[at]], [at] * 3)
        np.testing.assert_array_equal(native.step([READING], [one[at]], [at])[0], together[2])


def test_bad_positions_and_seats_are_refused(native_library: Library) -> None:
    native = NativeDecoder(native_model(native_library, window=64, context=64, num_layers=1)[0], 16, 2, 16)
    with pytest.raises(ValueError, match="position 16: there is room for 16 tokens"):
        native.step([READING], [1], [16])
    with pytest.raises(ValueError, match="17 tokens at 0: there is room for 16 at once"):
        native.read([1] * 17, 0)
    with pytest.raises(ValueError, match="4 tokens at 13: there is room for 16 at once, 16 in all"):
        native.read([1] * 4, 13)
    with pytest.raises(ValueError, match="seat 3 of 2"):
        native.step([3], [1], [0])
    with pytest.raises(ValueError, match="ids go from 37"):
        native.step([READING], [37], [0])


def test_answers_of_the_engine_are_mindspores_and_the_originals(
    native_library: Library, golden: Golden, golden_weights: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five prompts at once; the last is the original's, whose answer is known."""
    model = SparkForCausalLM(golden_config(sparse_local_size=64), seed=None)
    model.load_state(golden_weights)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, model.config.vocab_size, size).tolist() for size in (3, 1, 12, 16)]
    prompts.append(golden["greedy/prompt"].tolist())
    answers = []
    for library in (native_library, None):
        monkeypatch.setattr(native_decoder, "find_library", lambda library=library: Found(library, "it is not built"))
        engine = Engine(model, seats=5, end_id=5)
        kept = [engine.add(Request(prompt, GenerationConfig(max_new_tokens=40))) for prompt in prompts]
        while engine.busy:
            engine.step()
        answers.append([[token.id for token in generation.tokens] for generation in kept])
        (room,) = engine._rooms.values()
        assert isinstance(room.seating.decoder, NativeDecoder) == (library is not None)
    assert answers[0] == answers[1]
    found = answers[0][-1]
    assert prompts[-1] + found == golden["greedy/rp1.0"].tolist()[: len(prompts[-1]) + len(found)]
    assert len(found) > 20


class TestTheChoice:
    @pytest.fixture(autouse=True)
    def there(self, native_library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native_decoder, "find_library", lambda: Found(native_library, ""))

    def test_a_model_in_float32_alone_on_a_cpu_takes_the_library(self) -> None:
        model, _ = small_model(window=8, context=64, num_layers=1)
        assert isinstance(make_decoder(model, 8, 0, 16), NativeDecoder)
        assert describe(model).startswith("answers by the native library (")

    def test_other_types_do_not(self) -> None:
        model, _ = small_model(window=8, context=64, num_layers=1, compute_type="float16")
        assert why_not(model) == "the native library computes float32 and bfloat16, the model is float16 and float32"
        assert type(make_decoder(model, 8, 0, 16)) is Decoder

    def test_without_a_library_mindspore_computes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native_decoder, "find_library", lambda: Found(None, "it is not built"))
        model, _ = small_model(window=8, context=64, num_layers=1)
        assert type(make_decoder(model, 8, 0, 16)) is Decoder
        assert describe(model) == "answers by MindSpore's operators: it is not built"


def test_ten_thousand_steps_and_a_thousand_prompts_leave_memory_as_it_was(native_library: Library) -> None:
    decoder = NativeDecoder(native_model(native_library, window=64, context=20000, num_layers=1)[0], 64, 8, 64)
    seats = list(range(1, 9))

    def work(steps: int, prompts: int) -> int:
        for at in range(steps):
            decoder.step(seats[: at % 8 + 1], [at % 37] * (at % 8 + 1), [at] * (at % 8 + 1))
        for number in range(prompts):
            decoder.read([number % 37] * (number % 64 + 1), 0)
        return resident()

    before = work(500, 130)
    assert work(10_000, 1_000) - before < 2 << 20


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
