"""Prompts read by the library: the formulas' logits, whatever the parts, the threads and the instructions."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from native.test_library import Texts, grown, random_ids
from spark13b.native.decoding import prefill
from spark13b.native.library import LEVELS, Library


def read(texts: Texts, ids: np.ndarray, parts: list[int], threads: int = 1, **more: object) -> np.ndarray:
    """One text (T,), read in parts -> all its logits (T, V)."""
    texts.rings[:] = 0
    found, start = [], 0
    for part in parts:
        found.append(
            prefill(
                texts.library,
                texts.weights,
                texts.slots,
                texts.config.sparse_local_size,
                ids[start : start + part].astype(np.int32),
                start,
                texts.addresses[0],
                threads=threads,
                wanted=part,
                halves=texts.halves,
                **more,  # type: ignore[arg-type]
            )
        )
        start += part
    return np.concatenate(found)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"sparse_local_size": 1},
        {"sparse_local_size": 100},  # the window is larger than the context
        {"hidden_size": 64, "num_heads": 2},
        {"hidden_size": 128, "num_heads": 1},
        {"hidden_size": 72, "num_heads": 2, "ffn_hidden_size": 6},  # heads of 36: no multiple of a vector
        {"hidden_size": 10, "num_heads": 1, "vocab_size": 41, "num_layers": 1},  # less than a vector
    ],
    ids=str,
)
def test_logits_are_those_of_the_formulas_in_parts_of_any_length_on_every_set_of_instructions(
    shape: dict[str, int], native_library: Library
) -> None:
    texts = Texts(native_library, 1, **(shape | {"seq_length": 140}))
    ids = random_ids(1, 136)
    expected = texts.twin.logits(ids)[0]
    for parts in ([136], [1, 7, 63, 65], [65, 63, 7, 1]):
        for level in range(native_library.best + 1):
            found = read(texts, ids[0], parts, level=level)
            np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=f"{parts}, {LEVELS[level]}")


def test_a_step_goes_on_where_a_prompt_ends_and_a_prompt_where_a_step_ends(native_library: Library) -> None:
    texts = Texts(native_library, 1)
    ids = random_ids(1, 40)
    expected = texts.twin.logits(ids)[0]
    np.testing.assert_allclose(read(texts, ids[0, :20], [13, 7]), expected[:20], atol=1e-4)
    for at in (20, 21, 22):
        np.testing.assert_allclose(texts.step([0], [int(ids[0, at])], [at])[0], expected[at], atol=1e-4)
    more = ids[0, 23:].astype(np.int32)
    found = prefill(native_library, texts.weights, texts.slots, 8, more, 23, texts.addresses[0], threads=2)
    np.testing.assert_allclose(found[0], expected[-1], atol=1e-4)


@pytest.mark.parametrize("rounds", [False, True])
def test_one_thread_and_two_give_the_same_bits(rounds: bool, native_library: Library) -> None:
    texts = Texts(native_library, 1, hidden_size=192, ffn_hidden_size=400, seq_length=140)
    ids = random_ids(1, 136)[0]
    np.testing.assert_array_equal(
        read(texts, ids, [100, 36], threads=1, rounds=rounds), read(texts, ids, [100, 36], threads=2, rounds=rounds)
    )


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_products_of_bfloat16_are_off_by_its_rounding(stored: str, native_library: Library) -> None:
    """Each side of a product has 8 bits; sums are float32. Measured: 6 % of the largest logit, of random weights."""
    texts = Texts(native_library, 1, stored=stored, hidden_size=192, ffn_hidden_size=400, seq_length=140)
    ids = random_ids(1, 136)
    expected = texts.twin.logits(ids)[0]
    found = read(texts, ids[0], [136], rounds=True)
    worst = abs(found - expected).max() / abs(expected).max()
    assert 1e-5 < worst < 0.08
    exact = read(texts, ids[0], [136])
    np.testing.assert_allclose(exact, expected, atol=1e-4)  # bfloat16 weights are exact in float32 products


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_prompts_have_the_same_bits_beside_weights_of_16_bits_as_of_float32(
    stored: str, native_library: Library
) -> None:
    shape = {"hidden_size": 192, "ffn_hidden_size": 402, "seq_length": 300, "vocab_size": 301}
    narrow, wide = (Texts(native_library, 1, stored=stored, **shape) for _ in range(2))
    wide.hold_float32()
    ids, parts = random_ids(1, 240)[0], [1, 2, 8, 9, 20, 70, 130]
    for level in range(native_library.best + 1):
        np.testing.assert_array_equal(read(narrow, ids, parts, level=level), read(wide, ids, parts, level=level))


@pytest.mark.parametrize("stored", ["int8-64", "int4-32"])
def test_prompts_of_any_length_are_multiplied_by_whole_numbers(stored: str, native_library: Library) -> None:
    if not native_library.whole_numbers:
        pytest.skip("this processor has no VNNI")
    shape = {"hidden_size": 256, "num_heads": 4, "ffn_hidden_size": 768, "seq_length": 300, "sparse_local_size": 300}
    texts = Texts(native_library, 1, stored=stored, vocab_size=301, **shape)
    ids = random_ids(1, 200)
    expected = texts.twin.logits(ids)[0]
    parts = [1, 2, 3, 8, 9, 17, 60, 100]
    for level in filter(native_library.has_whole_numbers, range(native_library.best + 1)):
        found = read(texts, ids[0], parts, level=level)
        np.testing.assert_allclose(found, expected, atol=1.5e-2)  # inputs have 16 bits, as of a decode step
        np.testing.assert_array_equal(read(texts, ids[0], parts, level=level, threads=2), found)
        by_float = read(texts, ids[0], parts, level=level, whole_numbers=False)
        np.testing.assert_allclose(by_float, expected, atol=1e-3)
        assert not np.array_equal(by_float, found)


def test_rings_of_bfloat16_round_keys_and_values_alone_whatever_the_parts(native_library: Library) -> None:
    """Measured: 2 % of the largest logit, of random weights."""
    texts = Texts(native_library, 1, halves=True, seq_length=140, sparse_local_size=50)
    ids = random_ids(1, 136)
    expected = texts.twin.logits(ids)[0]
    whole, parts = read(texts, ids[0], [136]), read(texts, ids[0], [65, 63, 7, 1])
    assert 1e-5 < abs(whole - expected).max() / abs(expected).max() < 0.04
    np.testing.assert_allclose(parts, whole, atol=1e-3)  # a number may be rounded the other way
    steps = grown(texts, ids)[0]
    np.testing.assert_allclose(steps, whole, atol=0.04 * abs(expected).max())


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("halves", [False, True])
def test_keys_are_the_same_read_in_rings_and_copied_out_of_them(
    rounds: bool, halves: bool, native_library: Library
) -> None:
    """Rings of 140 hold the whole text; rings of 50 begin anew, and what lies in two pieces is copied."""
    ids = random_ids(1, 136)
    shape = {"seq_length": 140, "sparse_local_size": 50}
    lies, turns = (Texts(native_library, 1, slots, halves=halves, **shape) for slots in (140, 50))
    for level in range(native_library.best + 1):
        found, copied = (read(texts, ids[0], [70, 40, 26], rounds=rounds, level=level) for texts in (lies, turns))
        np.testing.assert_array_equal(found, copied)
        expected = lies.twin.logits(ids)[0]
        np.testing.assert_allclose(found, expected, atol=(0.1 if rounds or halves else 1e-4) * abs(expected).max())


def test_without_onednn_the_librarys_own_products_give_the_same(
    native_library: Library,
) -> None:
    """In a process of its own: oneDNN stays open once it is found."""
    texts = Texts(native_library, 1, seq_length=140)
    ids = random_ids(1, 136)
    program = f"""
import sys
from pathlib import Path
import numpy as np
from spark13b.native import library
library.onednn_path = lambda: None
from native.test_library import Texts, random_ids
from native.test_prefill import read
found = library.Library(Path({str(native_library.path)!r}))
assert found.onednn is None
texts, ids = Texts(found, 1, seq_length=140), random_ids(1, 136)[0]
below_amx = min(found.level, 2)
np.save(sys.stdout.buffer, read(texts, ids, [100, 36], rounds=True, level=below_amx))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=Path(__file__).parents[1], check=True
    )
    np.testing.assert_allclose(np.load(BytesIO(result.stdout)), texts.twin.logits(ids)[0], atol=1e-4)


def test_numbers_out_of_range_are_refused(native_library: Library) -> None:
    texts = Texts(native_library, 1)
    ids = np.array([1, 2], np.int32)

    def refused(message: str, ids: np.ndarray = ids, start: int = 0, window: int = 8, **more: int) -> None:
        with pytest.raises(ValueError, match=message):
            prefill(
                native_library,
                texts.weights,
                texts.slots,
                window,
                ids,
                start,
                texts.addresses[0],
                **({"threads": 1} | more),
            )

    refused("2 tokens at 39", start=39)
    refused("2 tokens at -1", start=-1)
    refused("3 wanted", wanted=3)
    refused("0 tokens", ids=ids[:0])
    refused("ids go from 1 to 37", ids=np.array([1, 37], np.int32))
    refused("window 0", window=0)
    refused("0 threads", threads=0)
