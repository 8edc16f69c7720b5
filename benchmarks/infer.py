"""Answers of spark13b beside transformers on torch: prefill, decode, first token, eight at once, and the bound.

    python benchmarks/infer.py [--sizes 10m 50m 120m] [--rounds 7] [--quick]

Float32, 2 threads, greedy, random weights. Ours is the engine as the commands use it, with seats for 8; the other side
is transformers' Llama with tied embeddings, the same widths, layers and vocabulary, biases in all linear layers and the
same GELU (it differs from ours in its norm alone), called token by token with its own cache under `inference_mode`,
which is faster than its `generate`. Each side is a process that lives through all rounds and waits while the other
works.

A round of each side is, by turns: a prompt of 512 tokens to its first token (prefill, tokens/s), one of 32 to its first
token (first token, ms), 32 tokens after it (decode, tokens/s), and 16 tokens of each of 8 texts at once (tokens/s of
all). The bound of decoding is the weights that a token needs, 4 bytes each, at the rate at which NumPy's matrix-vector
product reads 1 GB with 2 threads, in the same rounds: no program that reads all weights for a token can be faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sides import QUICK, QUIET, SIZES, OtherPrograms, Size, answering, llama, spark, wait_for_quiet, worker

SHORT, LONG, NEW, TOGETHER, STREAMS = 32, 512, 32, 16, 8
CONTEXT = 1024
READ_BYTES = 1 << 30
KINDS = ("prefill", "first", "decode", "streams")

Runs = dict[str, Callable[[int], float]]  # kind -> (seed -> tokens a second, or the milliseconds to the first token)


def prompt(size: Size, length: int, seed: int) -> list[int]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(0, size.vocabulary, length).tolist()


def spark_runs(size: Size) -> tuple[Runs, int]:
    """Ours, and the number of parameters."""
    from spark13b.config.sections import GenerationConfig
    from spark13b.infer.engine import Engine
    from spark13b.infer.requests import Request

    model = spark(size, CONTEXT)
    engine = Engine(model, seats=STREAMS)

    def ask(length: int, new: int, count: int, seed: int) -> list[float]:
        """Seconds of the steps until all answers are there."""
        options = GenerationConfig(max_new_tokens=new)
        for number in range(count):
            engine.add(Request(prompt(size, length, seed + 1000 * number), options))
        times = []
        while engine.busy:
            start = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - start)
        return times

    def streams(seed: int) -> float:
        times = ask(SHORT, TOGETHER + 1, STREAMS, seed)  # the first step reads the prompts
        return STREAMS * TOGETHER / sum(times[1:])

    runs: Runs = {
        "prefill": lambda seed: LONG / sum(ask(LONG, 1, 1, seed)),
        "first": lambda seed: 1000 * sum(ask(SHORT, 1, 1, seed)),
        "decode": lambda seed: NEW / sum(ask(SHORT, NEW + 1, 1, seed)[1:]),
        "streams": streams,
    }
    return runs, sum(parameter.size for parameter in model.weights().values())


def torch_runs(size: Size) -> tuple[Runs, int]:
    """The same of transformers on torch."""
    import torch

    model = llama(size, CONTEXT).eval()

    def read(length: int, count: int, seed: int) -> Any:
        ids = torch.tensor([prompt(size, length, seed + 1000 * number) for number in range(count)])
        return model(ids, use_cache=True, logits_to_keep=1)

    def grow(out: Any, steps: int) -> float:
        """Seconds of so many tokens of each text."""
        start = time.perf_counter()
        for _ in range(steps):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        out.logits[:, -1].argmax(-1).tolist()
        return time.perf_counter() - start

    def first(length: int, seed: int) -> float:
        start = time.perf_counter()
        read(length, 1, seed).logits[:, -1].argmax(-1).item()
        return time.perf_counter() - start

    def no_gradients(run: Callable[[int], float]) -> Callable[[int], float]:
        return torch.inference_mode()(run)

    runs: Runs = {
        "prefill": lambda seed: LONG / first(LONG, seed),
        "first": lambda seed: 1000 * first(SHORT, seed),
        "decode": lambda seed: NEW / grow(read(SHORT, 1, seed), NEW),
        "streams": lambda seed: STREAMS * TOGETHER / grow(read(SHORT, STREAMS, seed), TOGETHER),
    }
    return {kind: no_gradients(run) for kind, run in runs.items()}, sum(one.numel() for one in model.parameters())


SIDES: dict[str, Callable[[Size], tuple[Runs, int]]] = {"spark13b": spark_runs, "torch": torch_runs}


def work(side: str, size: Size) -> None:
    """One side's process: answers each line of standard input, a seed, with one number of each kind."""
    with answering() as tell:
        runs, parameters = SIDES[side](size)
        for seed in range(3):
            for run in runs.values():
                run(seed)  # compiled, and warm
        matrix = np.ones((READ_BYTES // 4 // 4096, 4096), np.float32)
        vector = np.ones(4096, np.float32)
        tell({"parameters": parameters})
        for line in sys.stdin:
            wait_for_quiet()
            others = OtherPrograms()
            answer = {kind: run(int(line)) for kind, run in runs.items()}
            share = others.share()
            start = time.perf_counter()
            matrix @ vector
            tell({**answer, "others": share, "bandwidth": READ_BYTES / (time.perf_counter() - start)})


def compare(size: Size, rounds: int) -> list[str]:
    """The table's rows of one size."""
    with (
        worker(__file__, "spark13b", size) as (ours, our_first),
        worker(__file__, "torch", size) as (theirs, their_first),
    ):
        answers: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
        seed = 10
        while len(answers[0]) < 3 * rounds and min(map(quiet, answers)) < rounds:
            seed += 1
            for run, side in zip((ours, theirs), answers, strict=True):
                side.append(run(seed))
            told = [" ".join(f"{kind} {side[-1][kind]:.1f}" for kind in (*KINDS, "others")) for side in answers]
            print(f"{size.name} round {len(answers[0])}: spark13b {told[0]}; torch {told[1]}", file=sys.stderr)
    chosen = [sorted(side, key=lambda answer: answer["others"])[:rounds] for side in answers]
    mine, other = ({kind: statistics.median(one[kind] for one in side) for kind in KINDS} for side in chosen)
    rate = statistics.median(one["bandwidth"] for side in chosen for one in side)
    bound = rate / (4 * our_first["parameters"])
    millions = [first["parameters"] / 1e6 for first in (our_first, their_first)]
    print(
        f"{size.name}: {millions[0]:.1f}M and {millions[1]:.1f}M parameters; memory is read at {rate / 1e9:.1f} GB/s; "
        f"others had up to {max(side[-1]['others'] for side in chosen):.0%} of the machine",
        file=sys.stderr,
    )
    return [
        f"| {size.name} | prefill of {LONG}, tokens/s | {mine['prefill']:,.0f} | {other['prefill']:,.0f} "
        f"| {mine['prefill'] / other['prefill']:.2f} | |",
        f"| | first token after {SHORT}, ms | {mine['first']:.0f} | {other['first']:.0f} "
        f"| {other['first'] / mine['first']:.2f} | |",
        f"| | decode, tokens/s | {mine['decode']:.1f} | {other['decode']:.1f} | {mine['decode'] / other['decode']:.2f} "
        f"| {mine['decode'] / bound:.2f} of {bound:.0f} |",
        f"| | {STREAMS} at once, tokens/s | {mine['streams']:.0f} | {other['streams']:.0f} "
        f"| {mine['streams'] / other['streams']:.2f} | {mine['streams'] / mine['decode']:.1f} times one |",
    ]


def quiet(answers: list[dict[str, float]]) -> int:
    """How many rounds other programs left alone."""
    return sum(answer["others"] <= QUIET for answer in answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a model of 0.5M parameters, to see that the script runs")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work[0], Size(**json.loads(arguments.work[1])))
        return
    sizes = [QUICK] if arguments.quick else [SIZES[name] for name in arguments.sizes]
    rows = [row for size in sizes for row in compare(size, arguments.rounds)]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    print("| size | | spark13b | transformers + torch | ratio | of the bound |\n" + "|---" * 6 + "|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
