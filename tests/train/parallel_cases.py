"""Five training steps of a tiny model, alone or divided over processes: losses, norms and final weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROWS, TOKENS, STEPS = 4, 16, 5
VOCABULARY = 40


@dataclass(frozen=True)
class Case:
    """One way to train; `values` are `--set` assignments."""

    name: str
    data_parallel: int = 1
    model_parallel: int = 1
    task: str = "sft"
    values: tuple[str, ...] = ()

    def preset(self) -> Any:
        from spark13b.config import load_preset

        rows = ROWS // self.data_parallel
        settings = {
            "task": self.task,
            "machine.devices": self.data_parallel * self.model_parallel,
            "parallel.data_parallel": self.data_parallel,
            "parallel.model_parallel": self.model_parallel,
            "model.num_layers": 1,
            "model.hidden_size": 32,
            "model.num_heads": 4,
            "model.ffn_hidden_size": 48,
            "model.vocab_size": VOCABULARY,
            "model.seq_length": TOKENS,
            "model.sparse_local_size": 8,
            "optimizer.weight_decay": 0.1,
            "optimizer.epsilon": 1e-4,
            "train.batch_size": rows,
            "lora.rank": 4,
            "lora.alpha": 8,
            "lora.dropout": 0.1,
        }
        return load_preset("cpu-tiny-sft", options=settings, assignments=list(self.values))


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """ids (ROWS, TOKENS + 1) and masks of the targets (ROWS, TOKENS), with a different number to learn in every row"""
    random = np.random.default_rng(5)
    made = []
    for _ in range(STEPS):
        ids = random.integers(0, VOCABULARY, (ROWS, TOKENS + 1)).astype(np.int32)
        mask = (random.random((ROWS, TOKENS)) < np.linspace(0.2, 0.9, ROWS)[:, None]).astype(np.float32)
        made.append((ids, mask))
    return made


def start_weights(config: Any) -> dict[str, np.ndarray]:
    """Weights in which no bias and no adapter is zero, so that each one's place shows."""
    from spark13b.model.names import expected_shapes

    random = np.random.default_rng(1)
    return {
        name: (random.standard_normal(shape) * 0.1 + name.endswith(".gamma")).astype(np.float32)
        for name, shape in expected_shapes(config).items()
    }


def run(case: Case, output: Path | None = None) -> dict[str, np.ndarray]:
    """Train the case in this process, one of those it is made for; with `output` write OUTPUT/CASE-RANK.npz."""
    from spark13b.model.causal_lm import SparkForCausalLM
    from spark13b.model.mesh import join
    from spark13b.train.optimizer import corrected
    from spark13b.train.step import make_setup, make_step

    preset = case.preset()
    mesh = join(preset.parallel)
    model = SparkForCausalLM(preset.model, seed=0, setup=make_setup(preset, mesh))
    model.load_state(start_weights(preset.model))
    if preset.task == "lora":
        random = np.random.default_rng(2)
        from spark13b.model.names import adapter_shapes

        model.load_adapters(
            {
                name: (random.standard_normal(shape) * 0.03).astype(np.float32)
                for name, shape in adapter_shapes(preset.model, preset.lora).items()
            }
        )
    optimizer, step = make_step(model, preset)
    losses, norms = [], []
    own = mesh.data.part(ROWS)
    for number, (ids, mask) in enumerate(batches()):
        rate, decay = corrected(preset.optimizer, 1e-2, number + 1)
        loss, norm = step(ids[own], mask[own], rate, decay, 1.0, number)
        losses.append(loss)
        norms.append(norm)
    arrays = {name: one.asnumpy().copy() for name, one in model.trainable().items()}
    arrays |= {one.name: one.asnumpy().copy() for one in optimizer.state()}
    found = {"losses": np.array(losses), "norms": np.array(norms), **arrays}
    if output is not None:
        np.savez(output / f"{case.name}-{mesh.world.index}.npz", **found)
    return found
