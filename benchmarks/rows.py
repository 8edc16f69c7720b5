"""Steps of several texts and short prompts with int8 and int4 weights, beside a step of one text and memory's bound.

    python benchmarks/rows.py [--sizes 120m 1b] [--kinds int8 int4] [--rounds 9] [--quick]

One process, two threads, random weights, in float32. In each round, by turns: steps of 1 to 16 texts, and prompts of 4
to 256 tokens, with AMX, and without it (AVX-512 with VNNI). Memory's rate, in the same rounds: two threads read 512 MB.
A call needs all weights once.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sides import THREADS

from native import ONE_B, SMALL, USUAL, prompt, spark_model, timed

TEXTS, PROMPTS = (1, 2, 4, 8, 12, 16), (4, 8, 16, 32, 64, 128, 256)
SHORT = 32
SIZES = {"120m": USUAL, "1b": ONE_B}


def measure(name: str, kind: str, rounds: int, quick: bool) -> None:
    """Print one table."""
    from spark13b.infer.native_decoder import NativeDecoder
    from spark13b.infer.native_model import NativeModel
    from spark13b.native.library import LEVELS, Library

    size = SMALL if quick else SIZES[name]
    model, nbytes = spark_model(size, 512, kind)
    path, plain = model.library.path, LEVELS.index("AVX-512")
    sides = {"AMX": Library(path), "VNNI": Library(path, plain)}
    decoders = {}
    for side, library in sides.items():
        decoders[side] = NativeDecoder(NativeModel(model.config, model.weights(), library), 256, max(TEXTS), 256)
        decoders[side].read(prompt(size, SHORT), 0)
        for seat in range(1, max(TEXTS) + 1):
            decoders[side].copy(0, seat)

    def step(decoder: NativeDecoder, texts: int) -> None:
        decoder.step(range(1, texts + 1), [7] * texts, [SHORT] * texts)

    def read(decoder: NativeDecoder, length: int) -> None:
        decoder.read(prompt(size, length), 0)

    block = np.ones((1 << 29) // 4, np.float32)
    seconds: dict[tuple[str, str, int], list[float]] = {}
    rates = []
    works: list[tuple[str, tuple[int, ...], Callable[[NativeDecoder, int], None]]] = [
        ("texts", TEXTS, step),
        ("prompt", PROMPTS, read),
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(rounds):
            for what, counts, work in works:
                for count in counts:
                    for side, decoder in decoders.items():
                        took = min(timed(lambda w=work, d=decoder, c=count: w(d, c)) for _ in range(2))
                        seconds.setdefault((side, what, count), []).append(took)
            rates.append(block.nbytes / timed(lambda: list(pool.map(np.max, np.split(block, THREADS)))))
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    bandwidth = statistics.median(rates)
    print(f"\n{size.name} {kind}: {nbytes / 1e6:.0f} MB of weights, memory is read at {bandwidth / 1e9:.1f} GB/s\n")
    print(f"| | {' | '.join(f'{side}: tokens/s | steps | of the bound' for side in sides)} |")
    print("|---" * (1 + 3 * len(sides)) + "|")
    for what, counts, _ in works:
        for count in counts:
            cells = []
            for side in sides:
                took = medians[side, what, count]
                cells += [f"{count / took:,.0f}", f"{took / medians[side, 'texts', 1]:.2f}"]
                cells.append(f"{nbytes / bandwidth / took:.2f}")
            print(f"| {f'{count} texts' if what == 'texts' else f'prompt of {count}'} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--kinds", nargs="+", choices=("int8", "int4"), default=["int8", "int4"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a small model, to see that the script runs")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    for name in arguments.sizes[: 1 if arguments.quick else None]:
        for kind in arguments.kinds:
            measure(name, kind, arguments.rounds, arguments.quick)


if __name__ == "__main__":
    main()
