"""Prefill and decode against the full forward pass, and what a decode step costs."""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from infer.small_model import random_texts, small_model
from model.numpy_model import NumpyModel
from spark13b.config.model import SparkConfig
from spark13b.infer.decoder import Decoder, _Step
from spark13b.model import SparkForCausalLM
from spark13b.model.kv_cache import KVCache

Pair = tuple[SparkForCausalLM, NumpyModel]


@pytest.fixture(scope="module")
def windowed() -> Pair:
    """Window 8, context 64."""
    return small_model(window=8, context=64)


@pytest.fixture(scope="module")
def decoder(windowed: Pair) -> Decoder:
    """Of two texts."""
    return Decoder(windowed[0], batch=2)


def check_growth(decoder: Decoder, twin: NumpyModel, texts: list[list[int]], starts: list[int]) -> None:
    """Prefill with the first `starts` tokens of the texts, feed the rest: each step's logits are the full pass's."""
    full = [twin.logits(np.array([text]))[0] for text in texts]
    steps = min(len(text) - start for text, start in zip(texts, starts, strict=True))
    found = decoder.prefill(
        [text[:start] for text, start in zip(texts, starts, strict=True)], total=max(map(len, texts))
    )
    for step in range(steps + 1):
        for row, start in enumerate(starts):
            np.testing.assert_allclose(found[row], full[row][start + step - 1], atol=1e-4, err_msg=f"{row} {step}")
        if step < steps:
            found = decoder.step([text[start + step] for text, start in zip(texts, starts, strict=True)])


class TestDecodeEqualsTheFullForwardPass:
    """At every position, for two texts of different lengths in one batch."""

    def test_while_the_text_grows_to_four_times_the_window(self, decoder: Decoder, windowed: Pair) -> None:
        check_growth(decoder, windowed[1], random_texts(34, 37), [2, 5])

    def test_after_a_prompt_longer_than_the_window_beside_one_shorter(self, decoder: Decoder, windowed: Pair) -> None:
        check_growth(decoder, windowed[1], random_texts(37, 20), [29, 3])

    def test_after_prompts_that_end_where_the_ring_begins_again(self, decoder: Decoder, windowed: Pair) -> None:
        check_growth(decoder, windowed[1], random_texts(30, 30), [16, 15])

    def test_when_a_prompt_of_one_token_follows_other_texts_in_the_same_caches(
        self, decoder: Decoder, windowed: Pair
    ) -> None:
        check_growth(decoder, windowed[1], random_texts(12, 12), [1, 2])

    def test_and_equals_this_models_own_forward_pass(self, decoder: Decoder, windowed: Pair) -> None:
        model, _ = windowed
        texts = random_texts(37, 37)
        full = model.logits(np.array(texts))
        found = decoder.prefill([text[:11] for text in texts], total=37)
        for position in range(11, 37):
            np.testing.assert_allclose(found, full[:, position - 1], atol=1e-4)
            found = decoder.step([text[position] for text in texts])


def test_decode_equals_the_full_forward_pass_with_window_1() -> None:
    model, twin = small_model(window=1, context=32, num_layers=1)
    check_growth(Decoder(model, batch=2), twin, random_texts(12, 15), [1, 4])


def test_a_cache_of_fewer_slots_than_the_window_serves_a_text_that_stays_short() -> None:
    model, twin = small_model(window=64, context=64, num_layers=1)
    decoder = Decoder(model, batch=2)
    check_growth(decoder, twin, random_texts(13, 16), [1, 4])
    assert [cache.slots for cache in caches(decoder)] == [16]


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
    decoder.prefill(random_texts(10, 5), total=37)
    decoder.step([3, 3])
    (cache,) = caches(decoder)
    rings = (*cache.keys, *cache.values)
    before, places = [ring.asnumpy().copy() for ring in rings], [ring.data_ptr() for ring in rings]
    decoder.step([4, 4])  # positions 11 and 6, slots 3 and 6 of 8
    for ring, old, place in zip(rings, before, places, strict=True):
        changed = (ring.asnumpy() != old).any(-1).reshape(2, 3, 8)
        assert np.argwhere(changed).tolist() == [[0, 0, 3], [0, 1, 3], [0, 2, 3], [1, 0, 6], [1, 1, 6], [1, 2, 6]]
        assert ring.data_ptr() == place


@pytest.mark.parametrize(
    ("prompts", "total", "message"),
    [
        ([[1]], 10, r"wants 2 prompts of 1 to 10 tokens, got \[1\]"),
        ([[1], []], 10, r"wants 2 prompts of 1 to 10 tokens, got \[1, 0\]"),
        ([[1], [1] * 11], 10, r"wants 2 prompts of 1 to 10 tokens, got \[1, 11\]"),
        ([[1], [1]], 65, "65 tokens are more than the context of 64"),
    ],
)
def test_prefill_refuses_what_its_caches_cannot_hold(
    prompts: list[list[int]], total: int, message: str, windowed: Pair
) -> None:
    with pytest.raises(ValueError, match=message):
        Decoder(windowed[0], batch=2).prefill(prompts, total)


def test_a_step_beyond_the_announced_total_is_refused(decoder: Decoder) -> None:
    decoder.prefill(random_texts(9, 3), total=10)
    decoder.step([1, 1])
    with pytest.raises(ValueError, match="told of 10 tokens at most"):
        decoder.step([1, 1])


class TestCompilation:
    """Graphs are compiled once a shape bucket."""

    @pytest.fixture(scope="class")
    def model(self) -> SparkForCausalLM:
        return small_model(window=8, context=64, num_layers=1)[0]

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
        self, compilations: list[str], model: SparkForCausalLM
    ) -> None:
        decoder = Decoder(model)
        for length in (1, 2, 9, 15, 16):
            decoder.prefill(random_texts(length), total=20 + length)
            decoder.step([1])
            decoder.step([2])
        assert compilations == ["_Prefill", "_Step"]
        decoder.prefill(random_texts(17), total=40)
        decoder.step([1])
        assert compilations == ["_Prefill", "_Step", "_Prefill"]

    def test_logits_of_all_lengths_within_a_bucket_share_one_graph(
        self, compilations: list[str], model: SparkForCausalLM
    ) -> None:
        for length in (3, 16, 1):
            model.logits(np.ones((1, length), np.int32))
        assert compilations == ["_Logits"]


def test_a_step_costs_the_same_at_token_10_and_at_token_10000() -> None:
    model, _ = small_model(window=8, context=16384, num_layers=1)
    step, token = _Step(model.transformer, KVCache(model.config, batch=1, slots=8)), Tensor([3], mindspore.int32)

    def seconds(position: int) -> float:
        where = Tensor([position], mindspore.int32)
        start = time.perf_counter()
        for _ in range(5):
            step(token, where).asnumpy()
        return time.perf_counter() - start

    seconds(10)
    pairs = [(seconds(10), seconds(10_000)) for _ in range(40)]
    early, late = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert late < 1.5 * early
    assert early < 1.5 * late


def test_the_graph_of_a_step_copies_neither_a_cache_nor_a_weight(tmp_path: Path) -> None:
    """Of all operators that MindSpore runs, only the write in place and views have the cache's size; no other copies.

    Read from the graph that MindSpore writes down; a process of its own, for it is asked to by its environment.
    """
    program = """
import mindspore
from infer.small_model import small_model
from spark13b.infer.decoder import _Step
from spark13b.model.kv_cache import KVCache
model, _ = small_model(window=1024, context=2000, num_layers=1)
step = _Step(model.transformer, KVCache(model.config, batch=1, slots=1024))
step(mindspore.Tensor([3], mindspore.int32), mindspore.Tensor([5], mindspore.int32))
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


def caches(decoder: Decoder) -> list[KVCache]:
    return [step.cache for _, step in decoder._graphs.values()]
