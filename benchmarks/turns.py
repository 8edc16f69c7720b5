"""What it saves to read of a conversation's prompt only what is new (`chat`, `serve --reuse`): time to the first token.

    python benchmarks/turns.py [--size 120m] [--kind bfloat16] [--turns 8] [--question 60] [--answer 60] [--rounds 5]

A conversation of random tokens, one text, two threads: each prompt is all turns before and a new question. Two engines
of one model, one of which reads every prompt whole, take each turn by turns; medians of rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time

import numpy as np

from native import ONE_B, SMALL, USUAL, spark_model

SIZES = {"120m": USUAL, "1b": ONE_B, "quick": SMALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="120m")
    parser.add_argument("--kind", choices=("float32", "bfloat16", "int8", "int4"), default="bfloat16")
    for name, usual in (("turns", 8), ("question", 60), ("answer", 60), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    asked = parser.parse_args()
    from spark13b.config.sections import GenerationConfig
    from spark13b.infer.engine import Engine
    from spark13b.infer.requests import Request

    size = SIZES[asked.size]
    model, _ = spark_model(size, 4096, asked.kind)
    options = GenerationConfig(max_new_tokens=asked.answer)

    def first_token(engine: Engine, prompt: list[int]) -> tuple[float, list[int]]:
        """Seconds, and the answer."""
        answer = engine.add(Request(prompt, options))
        while not answer.done:
            engine.step()
        assert answer.first_token_at is not None
        return answer.first_token_at - answer.added_at, [token.id for token in answer.tokens]

    found: list[list[tuple[float, float]]] = [[] for _ in range(asked.turns)]
    lengths = [0] * asked.turns
    for number in range(asked.rounds):
        rng = np.random.default_rng(number)
        engines = Engine(model, seats=1, context=4096), Engine(model, seats=1, context=4096, reuse=True)
        prompt: list[int] = []
        for turn in range(asked.turns):
            prompt += rng.integers(1, size.vocabulary, asked.question).tolist()
            (whole, answer), (new, _) = (first_token(engine, prompt) for engine in engines)
            found[turn].append((whole, new))
            lengths[turn] = len(prompt)
            prompt += answer
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}, ", end=""
    )
    print(f"{asked.size} {asked.kind}\n")
    print("| turn | tokens of the prompt | read whole, s | what is new, s | ratio |\n" + "|---" * 5 + "|")
    for turn, times in enumerate(found):
        whole, new = (statistics.median(side) for side in zip(*times, strict=True))
        print(f"| {turn + 1} | {lengths[turn]:,} | {whole:.3f} | {new:.3f} | {whole / new:.1f} |")


if __name__ == "__main__":
    main()
