"""Products of int8 and int4 weights by whole numbers (VNNI or SDOT), beside those by float32.

    python benchmarks/whole_numbers.py [--sets avx2 avx512] [--rounds 9] [--quick]

One process, one thread, each set of instructions; random weights in groups of 64, 2048 x 5632, small with --quick, and
so many that they come from memory. In each round both sides by turns, in the processor's time: 1 row, as in a
decode step, and several, as of a prompt. A rate is in billions of weights times rows a second.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time

import numpy as np

from spark13b.native.library import LEVELS, Library, find_library
from spark13b.native.matrix import BFLOAT16, Matrix
from spark13b.native.products import decode_product

ROWS = (1, 2, 4, 8, 64)
GROUP = 64
WORDS = {"baseline": 0, "avx2": 1, "avx512": 2}
MATRICES = 8


def random_matrix(rng: np.random.Generator, bits: int, outputs: int, inputs: int) -> Matrix:
    data = rng.integers(0, 256, (outputs, inputs * bits // 8), np.uint8)
    scales = rng.random((outputs, inputs // GROUP)).astype(BFLOAT16)
    return Matrix(data.view(np.int8) if bits == 8 else data, scales, GROUP)


def compare(library: Library, bits: int, level: int, rounds: int, quick: bool) -> list[str]:
    """The table's rows of one type and one set of instructions."""
    rng = np.random.default_rng(bits)
    inputs, outputs = (512, 1024) if quick else (2048, 5632)
    matrices = [random_matrix(rng, bits, outputs, inputs) for _ in range(MATRICES)]
    table = []
    for rows in ROWS:
        x, out = rng.standard_normal((rows, inputs), np.float32), np.empty((rows, outputs), np.float32)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(rounds):
            for whole, own in seconds.items():
                for matrix in matrices[: max(1, MATRICES // rows)]:
                    start = time.process_time()
                    decode_product(library, matrix, x, out, threads=1, level=level, whole_numbers=whole)
                    own.append(time.process_time() - start)
        by_whole, by_float = (rows * inputs * outputs / statistics.median(own) / 1e9 for own in seconds.values())
        ratio = by_whole / by_float
        table.append(f"| {LEVELS[level]} | int{bits} | {rows} | {by_float:.1f} | {by_whole:.1f} | {ratio:.2f} |")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=WORDS, default=list(WORDS), help="of instructions")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="small matrices, one round")
    arguments = parser.parse_args()
    library = find_library().library
    if library is None:
        sys.exit("the native library is not built: spark13b native build")
    levels = [WORDS[word] for word in arguments.sets if library.has_whole_numbers(WORDS[word])]
    print(platform.machine())
    print("\n| instructions | weights | rows | by float32 | by whole numbers | ratio |\n|---|---|---|---|---|---|")
    for level in levels:
        for bits in (8, 4):
            for row in compare(library, bits, level, 1 if arguments.quick else arguments.rounds, arguments.quick):
                print(row, flush=True)


if __name__ == "__main__":
    main()
