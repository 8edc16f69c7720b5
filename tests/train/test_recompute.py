"""Recomputed layers: the same bits as kept ones, with dropout."""

from __future__ import annotations

import numpy as np

from train.parallel_cases import Case, run


def test_five_steps_with_recomputed_layers_have_the_bits_of_five_with_kept_ones() -> None:
    kept = run(Case("kept", values=("train.dropout=0.2", "model.num_layers=2")))
    again = run(Case("again", values=("train.dropout=0.2", "model.num_layers=2", "train.recompute=true")))
    assert kept.keys() == again.keys()
    for name, array in kept.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
