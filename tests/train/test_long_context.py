"""A training step over a long context on this machine: memory and processor time, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PROGRAM = """
import json, sys, time
import numpy as np
from spark13b.config import load_preset
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.mesh import ALONE
from spark13b.train.step import make_setup, make_step

layers, window, rounds, *lengths = map(int, sys.argv[1:])
preset = load_preset("cpu-tiny-pretrain", options={
    "model.num_layers": layers, "model.hidden_size": 256, "model.num_heads": 4, "model.ffn_hidden_size": 1024,
    "model.vocab_size": 1000, "model.seq_length": max(lengths), "model.sparse_local_size": window,
    "train.recompute": True,
})
model = SparkForCausalLM(preset.model, seed=0, setup=make_setup(preset, ALONE))
optimizer, step = make_step(model, preset)

def seconds(tokens):
    ids = np.random.default_rng(0).integers(0, 1000, (1, tokens + 1)).astype(np.int32)
    start = time.process_time()
    loss, norm = step(ids, np.ones((1, tokens), np.float32), 1e-3, 0.0, 1.0, 0)
    assert np.isfinite([loss, norm]).all()
    return time.process_time() - start

for tokens in lengths:
    seconds(tokens)  # compiles
times = [[seconds(tokens) for tokens in lengths] for _ in range(rounds)]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"times": times, "peak": int(status["VmHWM"].split()[0]) * 1024}))
"""


def measure(layers: int, window: int, rounds: int, *lengths: int) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM, *map(str, (layers, window, rounds, *lengths))]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


def test_a_step_over_8192_tokens_with_window_2048_and_recompute_stays_under_3_gb() -> None:
    """A quarter of the whole context and of its window: scores of one block at a time, activations of one layer."""
    assert measure(2, 2048, 0, 8192)["peak"] < 3e9


def test_with_window_512_a_step_over_four_times_the_tokens_takes_at_most_five_and_a_half_times_as_long() -> None:
    times = measure(1, 512, 1, 2048, 8192)["times"]
    assert times[0][1] / times[0][0] < 5.5
