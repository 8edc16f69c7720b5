"""Why the loss mask follows the target: with the original's alignment the first token of an answer is never learned."""

from __future__ import annotations

import numpy as np
import pytest

from spark13b.config import load_preset
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.loss import Alignment, align
from spark13b.model.mesh import ALONE
from spark13b.train.optimizer import corrected
from spark13b.train.step import make_setup, make_step

QUESTIONS, LENGTH, END = 8, 5, 1
SETTINGS = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.ffn_hidden_size": 64,
    "model.vocab_size": 40,
    "model.seq_length": 8,
    "model.sparse_local_size": 8,
}


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Rows (QUESTIONS, LENGTH + 1) of <user> question <bot> answer answer <end>, and the answers' mask."""
    question = np.arange(QUESTIONS)
    columns = [np.full(QUESTIONS, 2), 4 + question, np.full(QUESTIONS, 3), 20 + question, 30 + question // 2]
    ids = np.stack([*columns, np.full(QUESTIONS, END)], 1).astype(np.int32)
    mask = np.zeros(ids.shape, np.float32)
    mask[:, 3:] = 1
    return ids, mask


def first_answers(alignment: Alignment) -> np.ndarray:
    """The token that the model puts after each prompt when it has learned the examples."""
    preset = load_preset("cpu-tiny-sft", options=SETTINGS)
    model = SparkForCausalLM(preset.model, seed=0, setup=make_setup(preset, ALONE))
    optimizer, step = make_step(model, preset)
    ids, mask = examples()
    for number in range(120):
        rate, decay = corrected(preset.optimizer, 1e-2, number + 1)
        loss, _ = step(ids, align(mask, alignment), rate, decay, 1.0, number)
    assert optimizer.state()
    assert loss < 0.05, "all that the mask lets through has been learned"
    return model.logits(ids[:, :3])[:, -1].argmax(-1)


@pytest.mark.parametrize("alignment", ["target", "input"])
def test_the_first_token_of_an_answer_is_learned_with_the_targets_mask_alone(alignment: Alignment) -> None:
    right = (first_answers(alignment) == examples()[0][:, 3]).mean()
    assert right == 1.0 if alignment == "target" else right < 0.5
