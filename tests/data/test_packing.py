"""Rows as arrays, without files: no token lost, none learned twice, every edge of a row's length."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark13b.data import packing as packing_module
from spark13b.data.encoding import Examples
from spark13b.data.ledger import Ledger
from spark13b.data.overlong import Overlong, Pieces, fitted, joined
from spark13b.data.packing import Packing, Rows, Shape, packer
from spark13b.errors import InputError

PAD = 0
HERE = Path("qa.json")
Lengths = list[tuple[int, int]]  # prompt, answer


def examples(lengths: Lengths, start: int = 1) -> Examples:
    """Examples whose ids count up from `start`, so that each can be recognised; the mask is 1 on answers."""
    sizes = np.array([prompt + answer for prompt, answer in lengths], np.int64)
    mask = [flag for prompt, answer in lengths for flag in [0] * prompt + [1] * answer]
    count = len(lengths)
    return Examples(
        np.arange(start, start + sizes.sum(), dtype=np.int32),
        np.array(mask, np.uint8),
        sizes,
        np.arange(7, 7 + count),
        sizes,
        np.zeros(count, np.bool_),
        np.empty(0, "S16"),
    )


def pieces(lengths: Lengths, row_length: int, overlong: Overlong = "error", ledger: Ledger | None = None) -> Pieces:
    return fitted(examples(lengths), HERE, row_length, overlong, ledger or Ledger())


def stream(tokens: int, start: int = 1) -> Pieces:
    ids = np.arange(start, start + tokens, dtype=np.int32)
    return Pieces(ids, np.ones(tokens, np.uint8), np.array([tokens]))


def rows_of(
    parts: list[Pieces], row_length: int, packing: Packing | None = "greedy", documents: bool = False, again: int = 0
) -> Rows:
    """All rows of a packer; after each `again` parts a new packer goes on with what is pending."""
    shape = Shape(row_length, PAD, documents)
    packer_ = packer(packing, shape)
    found = []
    for number, part in enumerate(parts, 1):
        found.append(packer_.add(part))
        if again and number % again == 0:
            packer_, pending = packer(packing, shape), packer_.pending
            packer_.pending = pending
    found = [rows for rows in [*found, packer_.finish()] if rows is not None]
    assert packer_.finish() is None
    for rows in found:
        assert rows.input_ids.dtype == rows.loss_mask.dtype == np.int32
        assert rows.input_ids.shape == rows.loss_mask.shape == (len(rows), row_length)
    empty = np.empty((0, row_length), np.int32)
    return Rows(
        np.concatenate([empty, *(rows.input_ids for rows in found)]),
        np.concatenate([empty, *(rows.loss_mask for rows in found)]),
        np.concatenate([empty, *(rows.document_ids for rows in found)]) if documents else None,  # type: ignore[misc]
    )


def each(whole: Pieces) -> list[Pieces]:
    """Its pieces, one by one."""
    ends = np.cumsum(whole.lengths)
    return [
        Pieces(whole.ids[end - size : end], whole.mask[end - size : end], np.array([size]))
        for end, size in zip(ends, whole.lengths, strict=True)
    ]


@pytest.mark.parametrize(
    ("tokens", "rows", "padding"),
    [(1, 1, 4), (4, 1, 1), (5, 1, 0), (6, 2, 4), (10, 2, 0), (11, 3, 4), (15, 3, 0), (16, 4, 4)],
)
def test_a_stream_shorter_equal_and_longer_than_rows_keeps_its_tail(tokens, rows, padding):
    found = rows_of([stream(tokens)], 5, None)
    assert found.input_ids.shape == (rows, 5)
    assert found.input_ids.ravel().tolist() == [*range(1, tokens + 1)] + [PAD] * padding
    assert found.loss_mask.ravel().tolist() == [1] * tokens + [0] * padding


@pytest.mark.parametrize("packing", [None, "greedy", "best-fit"])
def test_nothing_has_no_rows(packing):
    assert len(rows_of([], 5, packing)) == 0


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(1, 12), min_size=1), max_size=8), st.integers(2, 9), st.integers(0, 3))
def test_pretraining_rows_without_padding_are_the_token_stream(chunks, row_length, again):
    parts, start = [], 1
    for sizes in chunks:
        total = sum(sizes)
        parts.append(Pieces(np.arange(start, start + total, dtype=np.int32), np.ones(total, np.uint8), np.array(sizes)))
        start += total
    found = rows_of(parts, row_length, None, documents=True, again=again)
    assert found.input_ids[found.loss_mask == 1].tolist() == list(range(1, start))
    assert len(found) == -(-(start - 1) // row_length)
    owner = np.repeat(np.arange(sum(map(len, chunks))), [size for sizes in chunks for size in sizes])
    assert found.document_ids is not None
    for ids, documents in zip(found.input_ids, found.document_ids, strict=True):
        used = ids[ids != PAD]
        assert documents.tolist() == [*(owner[used - 1] - owner[used[0] - 1] + 1)] + [0] * (len(ids) - len(used))


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=12), st.integers(24, 40), st.integers(0, 3))
def test_examples_stand_whole_and_in_order_and_only_answers_are_learned(lengths, row_length, again):
    ledger = Ledger()
    whole = pieces(lengths, row_length, ledger=ledger)
    found = rows_of(each(whole), row_length, again=again)
    at = row = 0
    for one in each(whole):
        if at + len(one.ids) > row_length:
            assert set(found.input_ids[row, at:]) <= {PAD}
            assert not found.loss_mask[row, at:].any()
            row, at = row + 1, 0
        assert found.input_ids[row, at : at + len(one.ids)].tolist() == one.ids.tolist()
        assert found.loss_mask[row, at : at + len(one.ids)].tolist() == one.mask.tolist()
        at += len(one.ids)
    assert len(found) == (row + 1 if lengths else 0)
    assert found.loss_mask.sum() == sum(answer for _, answer in lengths)
    assert ledger.tokens == sum(map(sum, lengths))
    assert ledger.kept == ledger.packed == len(lengths)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=40), st.integers(18, 30), st.integers(0, 3))
def test_best_fit_keeps_every_example_whole_once_and_its_mask_with_it(lengths, row_length, again):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_module, "_POOL_TOKENS", 60)
        patch.setattr(packing_module, "_POOL_ROWS", 2)
        whole = pieces(lengths, row_length)
        found = rows_of(each(whole), row_length, "best-fit", documents=True, again=again)
    assert found.document_ids is not None
    seen = []
    for ids, mask, documents in zip(found.input_ids, found.loss_mask, found.document_ids, strict=True):
        for number in range(1, documents.max() + 1):
            inside = documents == number
            seen.append((ids[inside].tolist(), mask[inside].tolist()))
            assert np.diff(np.flatnonzero(inside)).tolist() == [1] * (inside.sum() - 1)
        assert not mask[documents == 0].any()
        assert set(ids[documents == 0]) <= {PAD}
    assert sorted(seen) == sorted((one.ids.tolist(), one.mask.tolist()) for one in each(whole))


def test_best_fit_fills_rows_where_greedy_does_not():
    lengths = [(1, 59), (1, 39)] * 1 + [(1, 69), (1, 29)] * 2 + [(1, 59), (1, 59), (1, 39), (1, 39)]
    whole = each(pieces(lengths, 100))
    assert len(rows_of(whole, 100, "best-fit")) == 5 < len(rows_of(whole, 100, "greedy"))


@pytest.mark.parametrize(("answer", "rows"), [(6, 1), (7, 2)])
def test_an_example_that_just_fits_the_rest_of_a_row_stays_in_it(answer, rows):
    assert len(rows_of([pieces([(2, 2), (2, answer - 2)], 10)], 10)) == rows


def test_an_example_as_long_as_a_row_fits_under_every_policy():
    for overlong in ("error", "truncate", "split", "drop"):
        ledger = Ledger()
        one = pieces([(4, 6)], 10, overlong, ledger)
        assert (one.ids.tolist(), one.mask.tolist()) == (list(range(1, 11)), [0] * 4 + [1] * 6)
        assert (ledger.kept, ledger.packed, ledger.tokens) == (1, 1, 10)


def test_error_names_place_and_lengths():
    with pytest.raises(InputError) as caught:
        pieces([(1, 1), (4, 7)], 10)
    assert "11 tokens (4 of them the prompt), a row holds 10" in caught.value.what
    assert (caught.value.where, caught.value.line) == ("qa.json", 8)
    assert "--seq-length 10 or more" in str(caught.value.fix)


def test_truncate_cuts_the_end_of_the_answer():
    ledger = Ledger()
    one = pieces([(4, 9)], 10, "truncate", ledger)
    assert (one.ids.tolist(), one.mask.tolist()) == (list(range(1, 11)), [0] * 4 + [1] * 6)
    assert (ledger.kept, ledger.truncated, ledger.packed, ledger.lost_tokens, ledger.tokens) == (1, 1, 0, 3, 10)


@pytest.mark.parametrize("prompt", [10, 11, 30])
def test_truncate_drops_an_example_of_which_only_prompt_would_remain(prompt):
    ledger = Ledger()
    assert len(pieces([(prompt, 3)], 10, "truncate", ledger)) == 0
    assert (ledger.kept, ledger.dropped, ledger.lost_tokens) == (0, 1, prompt + 3)


def test_drop_leaves_it_out_and_keeps_its_neighbours():
    ledger = Ledger()
    found = rows_of([pieces([(1, 2), (4, 9), (1, 2)], 10, "drop", ledger)], 10)
    assert found.input_ids.tolist() == [[1, 2, 3, 17, 18, 19, PAD, PAD, PAD, PAD]]
    assert (ledger.kept, ledger.dropped, ledger.lost_tokens) == (2, 1, 13)


def test_split_begins_a_row_overlaps_by_one_token_and_lets_others_follow():
    ledger = Ledger()
    found = rows_of([pieces([(1, 2), (3, 9), (1, 2)], 6, "split", ledger)], 6)
    assert found.input_ids.tolist() == [
        [1, 2, 3, PAD, PAD, PAD],
        [4, 5, 6, 7, 8, 9],
        [9, 10, 11, 12, 13, 14],
        [14, 15, 16, 17, 18, PAD],
    ]
    assert found.loss_mask.tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0]]
    assert (ledger.kept, ledger.packed, ledger.split, ledger.lost_tokens) == (3, 2, 1, 0)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6), st.integers(2, 12))
def test_split_teaches_each_answer_token_exactly_once_and_nothing_else(lengths, row_length):
    whole = examples(lengths)
    found = rows_of([fitted(whole, HERE, row_length, "split", Ledger())], row_length)
    ids, mask = found.input_ids, found.loss_mask
    assert ids[:, 1:][mask[:, 1:] == 1].tolist() == whole.ids[whole.mask == 1].tolist()
    rows, columns = np.nonzero(mask)
    assert (columns > 0).all()  # the first token of a row is no target
    np.testing.assert_array_equal(ids[rows, columns - 1], ids[rows, columns] - 1)  # seen after the token before it


def test_rows_of_a_length_that_real_examples_have_are_filled_to_98_percent_by_best_fit():
    random = np.random.default_rng(0)
    sizes = np.clip(random.lognormal(4.6, 0.8, 20000).astype(int), 8, 2049)
    parts = [pieces([(3, int(size) - 3) for size in sizes[at : at + 500]], 2049) for at in range(0, len(sizes), 500)]
    rows = {way: len(rows_of(parts, 2049, way)) for way in ("greedy", "best-fit")}
    fill = {way: sizes.sum() / (count * 2049) for way, count in rows.items()}
    assert fill["greedy"] < 0.97 < 0.98 < fill["best-fit"]
    assert Counter(sizes) == Counter(joined(parts).lengths.tolist())
