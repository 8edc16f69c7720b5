"""Recomputed layers: the same bits as kept ones, with dropout, for all weights and for adapters."""

from __future__ import annotations

import numpy as np
import pytest

from train.parallel_cases import Case, run


@pytest.mark.parametrize("task", ["sft", "lora"])
def test_five_steps_with_recomputed_layers_have_the_bits_of_five_with_kept_ones(task: str) -> None:
    kept = run(Case("kept", task=task, values=("train.dropout=0.2", "model.num_layers=2")))
    again = run(Case("again", task=task, values=("train.dropout=0.2", "model.num_layers=2", "train.recompute=true")))
    assert kept.keys() == again.keys()
    for name, array in kept.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
