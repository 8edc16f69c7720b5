"""Rows as arrays, without files: no token lost, none learned twice, every edge of a row's length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark13b.data import packing
from spark13b.data.encoding import Example
from spark13b.data.ledger import Ledger
from spark13b.data.overlong import Piece, fitted
from spark13b.data.packing import cut, pack
from spark13b.data.place import Place
from spark13b.errors import InputError

PAD = 0
HERE = Place(Path("qa.json"), 7)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that their borders are met, too."""
    monkeypatch.setattr(packing, "_BLOCK_ROWS", 3)


def joined(blocks) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(blocks)
    assert all(block.input_ids.dtype == block.loss_mask.dtype == np.int32 for block in blocks)
    assert all(len(block.input_ids) <= 3 for block in blocks)
    return (
        np.concatenate([block.input_ids for block in blocks]),
        np.concatenate([block.loss_mask for block in blocks]),
    )


def example(prompt: int, answer: int, start: int = 1) -> Example:
    """Ids that count up from `start`, so that each can be recognised."""
    return Example(np.arange(start, start + prompt + answer, dtype=np.int32), prompt, HERE)


def learned(ids: np.ndarray, mask: np.ndarray) -> list[int]:
    """The tokens that the loss counts: targets are `ids[:, 1:]`, weighed by `mask[:, 1:]`."""
    return ids[:, 1:][mask[:, 1:] == 1].tolist()


@pytest.mark.parametrize(
    ("tokens", "rows", "padding"),
    [(1, 1, 4), (4, 1, 1), (5, 1, 0), (6, 2, 4), (10, 2, 0), (11, 3, 4), (15, 3, 0), (16, 4, 4)],
)
def test_a_stream_shorter_equal_and_longer_than_rows_keeps_its_tail(tokens, rows, padding):
    stream = np.arange(1, tokens + 1, dtype=np.int32)
    ids, mask = joined(cut([stream], 5, PAD))
    assert ids.shape == mask.shape == (rows, 5)
    assert ids.ravel().tolist() == stream.tolist() + [PAD] * padding
    assert mask.ravel().tolist() == [1] * tokens + [0] * padding


def test_an_empty_stream_has_no_rows():
    assert list(cut([], 5, PAD)) == list(pack([], 5, PAD)) == []


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=8), st.integers(2, 9))
def test_pretraining_rows_without_padding_are_the_token_stream(chunks, row_length):
    stream = [token for chunk in chunks for token in chunk]
    blocks = list(cut([np.array(chunk, np.int32) for chunk in chunks], row_length, PAD))
    ids = [token for block in blocks for token in block.input_ids[block.loss_mask == 1].tolist()]
    assert ids == stream
    assert sum(len(block.input_ids) for block in blocks) == -(-len(stream) // row_length)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=12), st.integers(24, 40))
def test_examples_stand_whole_and_in_order_and_only_answers_are_learned(lengths, row_length):
    examples, start = [], 1
    for prompt, answer in lengths:
        examples.append(example(prompt, answer, start))
        start += prompt + answer
    ledger = Ledger()
    blocks = list(pack(fitted(examples, row_length, "error", ledger), row_length, PAD))
    rows = [row for block in blocks for row in zip(block.input_ids.tolist(), block.loss_mask.tolist(), strict=True)]
    at = 0
    row = 0
    for one in examples:
        ids = one.ids.tolist()
        if at + len(ids) > row_length:
            row, at = row + 1, 0
        assert rows[row][0][at : at + len(ids)] == ids
        assert rows[row][1][at : at + len(ids)] == [0] * one.prompt_length + [1] * (len(ids) - one.prompt_length)
        at += len(ids)
        following = rows[row][0][at:]
        if following and following[0] == PAD:
            assert set(following) == {PAD}
            assert not any(rows[row][1][at:])
    assert len(rows) == (row + 1 if examples else 0)
    assert sum(sum(mask) for _, mask in rows) == sum(answer for _, answer in lengths)
    assert ledger.tokens == sum(map(sum, lengths))
    assert ledger.kept == ledger.packed == len(lengths)


@pytest.mark.parametrize(("answer", "rows"), [(6, 1), (7, 2)])
def test_an_example_that_just_fits_the_rest_of_a_row_stays_in_it(answer, rows):
    pieces = fitted([example(2, 2), example(2, answer - 2)], 10, "error", Ledger())
    assert len(joined(pack(pieces, 10, PAD))[0]) == rows


def test_an_example_as_long_as_a_row_fits_under_every_policy():
    for overlong in ("error", "truncate", "split", "drop"):
        ledger = Ledger()
        (piece,) = fitted([example(4, 6)], 10, overlong, ledger)
        assert (piece.ids.tolist(), piece.learned_from) == (list(range(1, 11)), 4)
        assert (ledger.kept, ledger.packed, ledger.tokens) == (1, 1, 10)


def test_error_names_place_and_lengths():
    with pytest.raises(InputError) as caught:
        list(fitted([example(4, 7)], 10, "error", Ledger()))
    assert "11 tokens (4 of them the prompt), a row holds 10" in caught.value.what
    assert (caught.value.where, caught.value.line) == ("qa.json", 7)
    assert "--seq-length 10 or more" in caught.value.fix


def test_truncate_cuts_the_end_of_the_answer():
    ledger = Ledger()
    (piece,) = fitted([example(4, 9)], 10, "truncate", ledger)
    assert (piece.ids.tolist(), piece.learned_from) == (list(range(1, 11)), 4)
    assert (ledger.kept, ledger.truncated, ledger.packed, ledger.lost_tokens, ledger.tokens) == (1, 1, 0, 3, 10)


@pytest.mark.parametrize("prompt", [10, 11, 30])
def test_truncate_drops_an_example_of_which_only_prompt_would_remain(prompt):
    ledger = Ledger()
    assert list(fitted([example(prompt, 3)], 10, "truncate", ledger)) == []
    assert (ledger.kept, ledger.dropped, ledger.lost_tokens) == (0, 1, prompt + 3)


def test_drop_leaves_it_out_and_keeps_its_neighbours():
    ledger = Ledger()
    ids, _ = joined(pack(fitted([example(1, 2, 1), example(4, 9, 20), example(1, 2, 4)], 10, "drop", ledger), 10, PAD))
    assert ids.tolist() == [[1, 2, 3, 4, 5, 6, PAD, PAD, PAD, PAD]]
    assert (ledger.kept, ledger.dropped, ledger.lost_tokens) == (2, 1, 13)


def test_split_begins_a_row_overlaps_by_one_token_and_lets_others_follow():
    ledger = Ledger()
    pieces = fitted([example(1, 2, 101), example(3, 9, 1), example(1, 2, 201)], 6, "split", ledger)
    ids, mask = joined(pack(pieces, 6, PAD))
    assert ids.tolist() == [
        [101, 102, 103, PAD, PAD, PAD],
        [1, 2, 3, 4, 5, 6],
        [6, 7, 8, 9, 10, 11],
        [11, 12, 201, 202, 203, PAD],
    ]
    assert mask.tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0]]
    assert (ledger.kept, ledger.packed, ledger.split, ledger.lost_tokens) == (3, 2, 1, 0)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6), st.integers(2, 12))
def test_split_teaches_each_answer_token_exactly_once_and_nothing_else(lengths, row_length):
    examples, start, wanted = [], 1, []
    for prompt, answer in lengths:
        examples.append(example(prompt, answer, start))
        wanted += range(start + prompt, start + prompt + answer)
        start += prompt + answer
    pieces = list(fitted(examples, row_length, "split", Ledger()))
    assert all(len(piece.ids) <= row_length for piece in pieces)
    ids, mask = joined(pack(pieces, row_length, PAD))
    assert learned(ids, mask) == wanted
    rows, columns = np.nonzero(mask)
    assert (columns > 0).all()  # the first token of a row is no target
    np.testing.assert_array_equal(ids[rows, columns - 1], ids[rows, columns] - 1)  # seen after the token before it


def test_no_piece_reaches_over_a_block():
    pieces = [Piece(np.full(4, number, np.int32), 1) for number in range(1, 9)]
    ids, mask = joined(pack(pieces, 5, PAD))
    assert ids.tolist() == [[number] * 4 + [PAD] for number in range(1, 9)]
    assert mask.tolist() == [[0, 1, 1, 1, 0]] * 8
