"""A training step over a long context on this machine: its memory, in a process of its own.

How the work grows with the length is counted in model/test_long_context.py, forward and backward.
"""

from __future__ import annotations

import subprocess
import sys

PEAK = """
import numpy as np
from spark13b.config import load_preset
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.mesh import ALONE
from spark13b.train.step import make_setup, make_step

preset = load_preset("cpu-tiny-pretrain", options={
    "model.num_layers": 1, "model.hidden_size": 256, "model.num_heads": 4, "model.ffn_hidden_size": 1024,
    "model.vocab_size": 1000, "model.seq_length": 8192, "model.sparse_local_size": 2048, "train.recompute": True,
})
model = SparkForCausalLM(preset.model, seed=0, setup=make_setup(preset, ALONE))
optimizer, step = make_step(model, preset)
ids = np.random.default_rng(0).integers(0, 1000, (1, 8193)).astype(np.int32)
assert np.isfinite(step(ids, np.ones((1, 8192), np.float32), 1e-3, 0.0, 1.0, 0)).all()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def test_a_step_over_8192_tokens_with_window_2048_and_recompute_stays_under_3_gb() -> None:
    """A quarter of the whole context and of its window. All scores at once would be 1 GB, and their gradients again."""
    result = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    assert int(result.stdout.splitlines()[-1]) < 3e9
