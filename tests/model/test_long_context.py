"""The context of 32768 tokens on this machine: memory and time, each in a process of its own.

Time is that of the processor, which other work on the machine does not change much.

One layer of four heads of 64, 512 tokens in the vocabulary: what remains is attention.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PROGRAM = """
import json, statistics, sys, time
import numpy as np
from spark13b.model import SparkConfig, SparkForCausalLM

window, rounds, *lengths = map(int, sys.argv[1:])
model = SparkForCausalLM(SparkConfig(
    num_layers=1, hidden_size=256, num_heads=4, ffn_hidden_size=512, vocab_size=512,
    seq_length=32768, sparse_local_size=window,
))

def seconds(tokens):
    ids = np.random.default_rng(0).integers(0, 512, (1, tokens))
    start = time.process_time()
    model.logits(ids)
    return time.process_time() - start

backends = [model.attention_choice(1, tokens).backend for tokens in lengths]
for tokens in lengths:
    seconds(tokens)  # compiles
times = [[seconds(tokens) for tokens in lengths] for _ in range(rounds)]
ratio = statistics.median(row[-1] / row[0] for row in times) if times else None
# not ru_maxrss, which begins with the resident size of the process that started this one
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"backends": backends, "ratio": ratio, "peak": peak}))
"""


def measure(window: int, rounds: int, *lengths: int) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM, *map(str, (window, rounds, *lengths))]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


def test_a_forward_pass_over_32768_tokens_with_window_8192_stays_under_3_gb() -> None:
    """All scores at once would be 17 GB."""
    measured = measure(8192, 0, 32768)
    assert measured["backends"] == ["blocked"]
    assert measured["peak"] < 3e9


def test_with_window_2048_four_times_the_tokens_take_about_four_times_as_long() -> None:
    """With full attention it would be sixteen times."""
    measured = measure(2048, 1, 8192, 32768)
    assert measured["backends"] == ["blocked", "blocked"]
    assert measured["ratio"] < 5.5
