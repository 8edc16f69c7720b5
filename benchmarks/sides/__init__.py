"""Two programs that do the same, one process each, by turns in one run: what the comparisons with torch share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spark13b.config.model import ComputeType, SparkConfig
from spark13b.config.sections import LoraConfig

THREADS = 2
QUIET, PATIENCE = 0.05, 20.0  # share of the machine that other programs may take; seconds to wait for that

Side = Callable[..., dict[str, float]]  # what is asked of a side -> what its process answers


@dataclass(frozen=True)
class Size:
    """The shape of one comparison."""

    name: str
    layers: int
    hidden: int
    heads: int
    ffn: int  # width of gate and value, each
    vocabulary: int
    batch: int
    tokens: int = 512

    @property
    def flops(self) -> float:
        """Of the matrix products of one step; the formula is in the head of train.py."""
        attention = self.layers * self.hidden * (self.tokens + 1)
        return self.flops_of_weights + 6 * self.batch * self.tokens * attention

    @property
    def flops_of_weights(self) -> float:
        """Of those with weights."""
        weights = self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.ffn) + self.hidden * self.vocabulary
        return 6 * self.batch * self.tokens * weights

    def batch_of(self, seed: int) -> np.ndarray:
        """(B, T+1) random tokens"""
        return np.random.default_rng(seed).integers(0, self.vocabulary, (self.batch, self.tokens + 1), dtype=np.int32)


SIZES = {
    size.name: size
    for size in (
        Size("10m", layers=10, hidden=256, heads=4, ffn=704, vocabulary=8000, batch=8),
        Size("50m", layers=13, hidden=512, heads=8, ffn=1408, vocabulary=16000, batch=3),
        Size("120m", layers=13, hidden=768, heads=12, ffn=2112, vocabulary=32000, batch=1),
    )
}
QUICK = Size("quick", layers=2, hidden=128, heads=2, ffn=352, vocabulary=1000, batch=2, tokens=128)


def llama(size: Size, context: int) -> Any:
    """Transformers' Llama of that shape on torch: tied embeddings, biases in all linear layers, our GELU, sdpa."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=size.layers,
        hidden_size=size.hidden,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.ffn,
        vocab_size=size.vocabulary,
        max_position_embeddings=context,
        hidden_act="gelu_pytorch_tanh",
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def spark(size: Size, context: int, compute_type: ComputeType = "float32", lora: LoraConfig | None = None) -> Any:
    """Our model of that shape, with random weights."""
    from spark13b.model.causal_lm import SparkForCausalLM
    from spark13b.model.transformer import Setup

    return SparkForCausalLM(spark_config(size, context, compute_type), seed=0, setup=Setup(lora=lora))


def spark_config(size: Size, context: int, compute_type: ComputeType = "float32") -> SparkConfig:
    """That shape as ours."""
    return SparkConfig(
        num_layers=size.layers,
        hidden_size=size.hidden,
        num_heads=size.heads,
        ffn_hidden_size=2 * size.ffn,
        vocab_size=size.vocabulary,
        seq_length=context,
        sparse_local_size=context,
        compute_type=compute_type,
    )


class OtherPrograms:
    """What other programs take of the machine from now on; this one's process alone may work meanwhile."""

    def __init__(self) -> None:
        self.began, self.busy = time.perf_counter(), self._busy()

    def share(self) -> float:
        """0 to 1, of all cores"""
        seconds = time.perf_counter() - self.began
        return max(0.0, (self._busy() - self.busy) / seconds / (os.cpu_count() or 1))

    @staticmethod
    def _busy() -> float:
        """Seconds of all cores together that were not this process's"""
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def wait_for_quiet() -> None:
    """Sleep until other programs leave the machine alone, or patience ends."""
    until = time.perf_counter() + PATIENCE
    while time.perf_counter() < until:
        others = OtherPrograms()
        time.sleep(0.5)
        if others.share() < QUIET:
            return


@contextmanager
def worker(script: str, side: str, size: Size) -> Iterator[tuple[Side, dict[str, float]]]:
    """A side's process, `script --work SIDE SIZE`: a function that asks it something, and what it said at first."""
    command = [sys.executable, script, "--work", side, json.dumps(asdict(size))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def answer() -> dict[str, float]:
        line = stdout.readline()
        if not line:
            raise SystemExit(f"{side} ended without an answer; its message is above")
        return json.loads(line)

    def run(*asked: Any) -> dict[str, float]:
        print(*asked, file=stdin, flush=True)
        return answer()

    try:
        yield run, answer()
    finally:
        stdin.close()
        process.wait()


@contextmanager
def answering() -> Iterator[Callable[[dict[str, Any]], None]]:
    """In a side's process: a function that sends an answer; what a library prints does not mix with the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    yield lambda answer: print(json.dumps(answer), file=answers, flush=True)
