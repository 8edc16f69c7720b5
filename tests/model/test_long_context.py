"""Long contexts on this machine: the memory of 32768 tokens, and how the work of attention grows with the length.

What grows is counted, not timed: a timer tells what else the machine does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor

from spark13b.config.model import SparkConfig
from spark13b.model.attention.blocked import BlockedAttention
from spark13b.model.attention.choose import choose_backend

# One layer of two heads of 16, 512 tokens in the vocabulary: what remains is attention, and of it the scores.
PEAK = """
import json
import numpy as np
from spark13b.model import SparkConfig, SparkForCausalLM

model = SparkForCausalLM(SparkConfig(
    num_layers=1, hidden_size=32, num_heads=2, ffn_hidden_size=64, vocab_size=512,
    seq_length=32768, sparse_local_size=8192,
))
model.logits(np.random.default_rng(0).integers(0, 512, (1, 32768)))
# not ru_maxrss, which begins with the resident size of the process that started this one
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"backend": model.attention_choice(1, 32768).backend, "peak": peak}))
"""


def test_a_forward_pass_over_32768_tokens_with_window_8192_stays_under_3_gb() -> None:
    """All scores at once would be 8.6 GB."""
    result = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    measured = json.loads(result.stdout.splitlines()[-1])
    assert measured["backend"] == "blocked"
    assert measured["peak"] < 3e9


def pairs(window: int, tokens: int) -> tuple[int, int]:
    """Pairs of a query and a key that attention multiplies, forward and backward, with one head of 8."""
    config = SparkConfig(
        num_layers=1, hidden_size=8, num_heads=1, ffn_hidden_size=8, vocab_size=8,
        seq_length=tokens, sparse_local_size=window,
    )  # fmt: skip
    assert choose_backend(config, "cpu", 1, tokens).backend == "blocked"
    attention = BlockedAttention(config)
    scores, count = attention.blocks.matmul_t, 0

    def counted(queries: Any, keys: Any) -> Any:
        nonlocal count
        found = scores(queries, keys)
        count += found.size
        return found

    attention.blocks.matmul_t = counted
    q, k, v, dout = (Tensor(np.zeros((1, tokens, 8), np.float32)) for _ in range(4))
    mask = attention.mask(Tensor(0, mindspore.int32), 1, 1, tokens)
    out = attention.blocks(q, k, v, mask)
    forward = count
    attention.blocks.bprop(q, k, v, mask, out, dout)
    return forward, count - forward


def test_with_window_2048_four_times_the_tokens_make_four_and_a_half_times_the_scores_and_gradients(
    operator_by_operator: None,
) -> None:
    """With full attention it would be sixteen times."""
    window, short, long = 2048, pairs(2048, 8192), pairs(2048, 32768)
    for few, many in zip(short, long, strict=True):
        assert 4 * few <= many < 4.5 * few
    seen = sum(min(place + 1, window) for place in range(32768))
    assert seen <= long[0] < 1.6 * seen  # whole blocks, of which the mask cuts the edges
