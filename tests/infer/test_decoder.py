"""Prefill and decode against the full forward pass, one seat against another, and what a decode step costs."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from infer.small_model import random_texts, small_model
from model.numpy_model import NumpyModel
from spark13b.config.model import SparkConfig
from spark13b.infer.decoder import Decoder
from spark13b.infer.decoding import READING, Decoding
from spark13b.model import SparkForCausalLM
from spark13b.model.kv_cache import KVCache

Pair = tuple[SparkForCausalLM, NumpyModel]


@pytest.fixture(scope="module")
def windowed() -> Pair:
    """Window 8, context 64."""
    return small_model(window=8, context=64)


@pytest.fixture(scope="module")
def decoder(windowed: Pair) -> Decoder:
    """With seats for three texts beside the one that is being read; prompts are read in parts of 16 tokens at most."""
    return Decoder(windowed[0], slots=8, seats=3, chunk=16)


def read(decoder: Decoding, text: list[int], part: int = 16) -> np.ndarray:
    """Read a text in parts -> logits after it."""
    for start in range(0, len(text), part):
        logits = decoder.read(text[start : start + part], start)
    return logits


def check_growth(decoder: Decoding, twin: NumpyModel, texts: list[list[int]], starts: list[int]) -> None:
    """Read the first `starts` tokens of the texts, feed the rest together: all logits are the full pass's."""
    full = [twin.logits(np.array([text]))[0] for text in texts]
    seats = list(range(1, len(texts) + 1))
    for seat, text, start, expected in zip(seats, texts, starts, full, strict=True):
        np.testing.assert_allclose(read(decoder, text[:start]), expected[start - 1], atol=1e-4)
        decoder.copy(READING, seat)
    for step in range(min(len(text) - start for text, start in zip(texts, starts, strict=True))):
        places = [start + step for start in starts]
        found = decoder.step(seats, [text[at] for text, at in zip(texts, places, strict=True)], places)
        for row, at in enumerate(places):
            np.testing.assert_allclose(found[row], full[row][at], atol=1e-4, err_msg=f"text {row}, token {at}")


class TestDecodeEqualsTheFullForwardPass:
    """At every position, for texts of different lengths in one batch."""

    def test_while_the_text_grows_to_four_times_the_window(self, decoder: Decoder, windowed: Pair) -> None:
        check_growth(decoder, windowed[1], random_texts(34, 37, 30), [2, 5, 1])

    def test_after_a_prompt_longer_than_the_window_beside_one_shorter(self, decoder: Decoder, windowed: Pair) -> None:
        check_growth(decoder, windowed[1], random_texts(50, 20, 24), [33, 3, 9])

    def test_after_prompts_that_end_where_the_ring_begins_again(self, decoder: Decoder, windowed: Pair) -> None:
        check_growth(decoder, windowed[1], random_texts(30, 30, 30), [16, 15, 17])

    def test_and_equals_this_models_own_forward_pass(self, decoder: Decoder, windowed: Pair) -> None:
        model, _ = windowed
        (text,) = random_texts(37)
        full = model.logits(np.array([text]))[0]
        np.testing.assert_allclose(read(decoder, text[:11]), full[10], atol=1e-4)
        for position in range(11, 37):
            np.testing.assert_allclose(
                decoder.step([READING], [text[position]], [position])[0], full[position], atol=1e-4
            )


@pytest.mark.parametrize("part", [16, 7, 3, 1])
def test_a_prompt_read_in_parts_gives_the_logits_of_the_whole(part: int, decoder: Decoder, windowed: Pair) -> None:
    (text,) = random_texts(41)
    expected = windowed[1].logits(np.array([text]))[0][-1]
    np.testing.assert_allclose(read(decoder, text, part), expected, atol=1e-4)


def test_a_text_has_the_same_numbers_to_the_last_bit_alone_and_in_company(decoder: Decoder) -> None:
    """Whatever the others are, and also in the reading seat, whose graph is another."""
    one, two, three = random_texts(30, 34, 20)
    for seat, text in ((1, three), (2, two), (3, one)):
        read(decoder, text[:10])
        decoder.copy(READING, seat)  # the last one stays in the reading seat, too
    for at in range(10, 20):
        together = decoder.step([1, 2, 3], [three[at], two[at], one[at]], [at] * 3)
        alone = decoder.step([READING], [one[at]], [at])
        np.testing.assert_array_equal(together[2], alone[0])
    fewer = decoder.step([2, 3], [two[20], one[20]], [20, 20])
    alone = decoder.step([READING], [one[20]], [20])
    np.testing.assert_array_equal(fewer[1], alone[0])


def test_seats_beyond_one_batch_are_served_in_several() -> None:
    model, twin = small_model(window=8, context=32, num_layers=1)
    decoder = Decoder(model, slots=8, seats=10, chunk=16)
    texts = random_texts(*range(12, 22))
    check_growth(decoder, twin, texts, [3] * 10)


def test_decode_equals_the_full_forward_pass_with_window_1() -> None:
    model, twin = small_model(window=1, context=32, num_layers=1)
    check_growth(Decoder(model, slots=1, seats=2), twin, random_texts(12, 15), [1, 4])


def test_a_cache_of_fewer_slots_than_the_window_serves_a_text_that_stays_short() -> None:
    model, twin = small_model(window=64, context=64, num_layers=1)
    decoder = Decoder(model, slots=16, seats=2)
    check_growth(decoder, twin, random_texts(13, 16), [1, 4])
    with pytest.raises(ValueError, match="position 16: there is room for 16 tokens"):
        decoder.step([READING], [1], [16])
    with pytest.raises(ValueError, match="17 tokens at 0: there is room for 512 at once, 16 in all"):
        decoder.read([1] * 17, 0)


@pytest.mark.parametrize(("window", "context", "slots"), [(8, 64, 8), (8192, 64, 64), (1, 4096, 1)])
def test_a_cache_has_as_many_slots_as_the_shorter_of_context_and_window(window: int, context: int, slots: int) -> None:
    config = SparkConfig(
        num_layers=2,
        hidden_size=24,
        num_heads=3,
        ffn_hidden_size=20,
        vocab_size=37,
        seq_length=context,
        sparse_local_size=window,
    )
    assert config.cache_slots == slots
    cache = KVCache(config, batch=2, slots=slots)
    assert [ring.shape for ring in (*cache.keys, *cache.values)] == [(2 * 3 * slots, 8)] * 4
    with pytest.raises(ValueError, match=f"slots must be 1 to {slots}, got {slots + 1}"):
        KVCache(config, batch=2, slots=slots + 1)


def test_a_step_changes_one_slot_of_each_ring_and_leaves_the_ring_where_it_is(decoder: Decoder) -> None:
    for seat, text in enumerate(random_texts(10, 5, 3), 1):
        read(decoder, text)
        decoder.copy(READING, seat)
    decoder.step([1, 2, 3], [3, 3, 3], [10, 5, 3])
    cache = decoder._rings[1]
    rings = (*cache.keys, *cache.values)
    before, places = [ring.asnumpy().copy() for ring in rings], [ring.data_ptr() for ring in rings]
    decoder.step([1, 2, 3], [4, 4, 4], [11, 6, 4])  # slots 3, 6 and 4 of 8
    for ring, old, place in zip(rings, before, places, strict=True):
        changed = (ring.asnumpy() != old).any(-1).reshape(3, 3, 8)
        written = [[seat, head, slot] for seat, slot in enumerate((3, 6, 4)) for head in range(3)]
        assert np.argwhere(changed).tolist() == written
        assert ring.data_ptr() == place


class TestCompilation:
    """Graphs are compiled once a shape bucket."""

    @pytest.fixture
    def compilations(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        from mindspore.common import api

        names: list[str] = []
        executor = type(api._cell_graph_executor)
        original: Callable[..., tuple[str, bool]] = executor.compile

        def counting(self: object, cell: object, *args: object, **options: object) -> tuple[str, bool]:
            phase, compiled = original(self, cell, *args, **options)
            if compiled:
                names.append(type(cell).__name__)
            return phase, compiled

        monkeypatch.setattr(executor, "compile", counting)
        yield names

    def test_prompts_of_all_lengths_within_a_bucket_share_one_prefill_and_one_step(
        self, compilations: list[str]
    ) -> None:
        decoder = Decoder(small_model(window=8, context=64, num_layers=1)[0], slots=8)
        for length in (1, 2, 9, 15, 16):
            decoder.read([1] * length, 0)
            decoder.step([READING], [1], [length])
            decoder.step([READING], [2], [length + 1])
        assert compilations == ["_Read", "_Step"]
        decoder.read([1] * 17, 0)
        decoder.step([READING], [1], [17])
        assert compilations == ["_Read", "_Step", "_Read"]
        decoder.read([1] * 9, 17)  # a later part is another graph, for all places
        decoder.read([1] * 12, 26)
        assert compilations == ["_Read", "_Step", "_Read", "_Read"]

    def test_logits_of_all_lengths_within_a_bucket_share_one_graph(self, compilations: list[str]) -> None:
        model, _ = small_model(window=8, context=64, num_layers=1)
        for length in (3, 16, 1):
            model.logits(np.ones((1, length), np.int32))
        assert compilations == ["_Logits"]


def test_a_step_costs_the_same_at_token_10_and_at_token_10000() -> None:
    model, _ = small_model(window=8, context=16384, num_layers=1)
    decoder = Decoder(model, slots=8)

    def seconds(position: int) -> float:
        start = time.perf_counter()
        for _ in range(5):
            decoder.step([READING], [3], [position])
        return time.perf_counter() - start

    seconds(10)
    early, late = math.inf, math.inf
    for _ in range(400):  # by turns, and the best of each: the machine is shared
        early, late = min(early, seconds(10)), min(late, seconds(10_000))
        if max(early, late) < 1.5 * min(early, late):
            return
    raise AssertionError((early, late))


def test_the_graph_of_a_step_copies_neither_a_cache_nor_a_weight(tmp_path: Path) -> None:
    """Of all operators that MindSpore runs, only the write in place and views have the cache's size; no other copies.

    Read from the graph that MindSpore writes down; a process of its own, for it is asked to by its environment.
    """
    program = """
from infer.small_model import small_model
from spark13b.infer.decoder import Decoder
Decoder(small_model(window=1024, context=2000, num_layers=1)[0], slots=1024).step([0], [3], [5])
"""
    environment = os.environ | {
        "MS_DEV_SAVE_GRAPHS": "2",
        "MS_DEV_DUMP_IR_PASSES": "graph_build",
        "MS_DEV_SAVE_GRAPHS_PATH": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment, capture_output=True)
    (file,) = tmp_path.rglob("graph_build_*.ir")
    # "%59(CNode_118) = ScatterUpdate(...) ..." and, on the next line, ": (inputs) -> (<Tensor[Float32], (3072, 8)>)"
    line = re.compile(r"^ +%\d+\(\S+\) = (\w+)\(.*\n +: \(.*\) -> \(<\S+, \(([\d, ]+)\)", re.MULTILINE)
    operators = [
        (name.removeprefix("PrimFunc_"), math.prod(map(int, shape.split(","))))
        for name, shape in line.findall(file.read_text())
    ]
    assert {name for name, size in operators if size == 3 * 1024 * 8} == {"ScatterUpdate", "Load", "Reshape"}
    assert max(size for _, size in operators) == 3 * 1024 * 8
    assert not {"TensorMove", "Assign", "AssignValue"} & {name for name, _ in operators}
