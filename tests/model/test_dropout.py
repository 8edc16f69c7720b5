"""Dropout masks: the right share, like chance, and a function of seed, step and place alone."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor, ops

from spark13b.model.device import device
from spark13b.model.dropout import Dropout, dropout_key

ROWS, COLUMNS, RATE = 512, 256, 0.1


def mask(key: np.ndarray, rows: int = ROWS, place: str = "here", **part: int) -> np.ndarray:
    """What dropout makes of ones."""
    device()
    return Dropout(RATE, place, **part)(Tensor(np.ones((rows, COLUMNS), np.float32)), Tensor(key)).asnumpy()


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    """By a graph; those that are compared with it are computed operator by operator, or by another graph."""
    return mask(dropout_key(3, 7, 0, 64))


def test_the_share_is_dropped_and_the_rest_scaled_up(whole: np.ndarray) -> None:
    assert set(np.unique(whole)) == {np.float32(0), np.float32(1 / (1 - RATE))}
    kept = whole > 0
    noise = (RATE * (1 - RATE) / kept.size) ** 0.5
    assert abs(kept.mean() - (1 - RATE)) < 5 * noise
    # means of rows and columns scatter as those of independent draws do
    for axis, number in ((0, ROWS), (1, COLUMNS)):
        expected = (RATE * (1 - RATE) / number) ** 0.5
        assert kept.mean(axis).std() == pytest.approx(expected, rel=0.15)


def test_neighbours_do_not_know_of_each_other(whole: np.ndarray) -> None:
    kept = (whole > 0).astype(float)
    for shifted in (np.roll(kept, 1, 0), np.roll(kept, 1, 1), np.roll(kept, 2, 0), kept[::-1]):
        assert abs(np.corrcoef(kept.ravel(), shifted.ravel())[0, 1]) < 5 / kept.size**0.5


@pytest.mark.usefixtures("operator_by_operator")
@pytest.mark.parametrize("other", ["seed", "step", "place"])
def test_another_seed_step_or_place_has_another_mask(other: str, whole: np.ndarray) -> None:
    key = dropout_key(4 if other == "seed" else 3, 8 if other == "step" else 7, 0, 64)
    found = mask(key, place="there" if other == "place" else "here")
    assert abs(np.corrcoef((found > 0).ravel(), (whole > 0).ravel())[0, 1]) < 5 / whole.size**0.5


@pytest.mark.usefixtures("operator_by_operator")
def test_a_part_of_a_batch_has_its_part_of_the_mask(whole: np.ndarray) -> None:
    np.testing.assert_array_equal(
        mask(dropout_key(3, 7, 2, 64), rows=256), whole[128:384]
    )  # from row 2 of 64 tokens on
    np.testing.assert_array_equal(mask(dropout_key(3, 7, 0, 64), rows=256, first_row=1), whole[256:])


def test_the_gradient_has_the_same_mask(whole: np.ndarray) -> None:
    cell = Dropout(RATE, "here")
    ones = Tensor(np.ones((ROWS, COLUMNS), np.float32))
    gradient = ops.grad(cell)(ones, Tensor(dropout_key(3, 7, 0, 64))).asnumpy()
    np.testing.assert_array_equal(gradient, whole)
