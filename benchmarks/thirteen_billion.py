"""The whole 13B model in int4 or int8 on this machine: start, memory, prompt and answer, beside the memory's rate.

    python benchmarks/thirteen_billion.py [--bits 4|8] [--rounds 3] [--folder DIR] [--preset NAME] [--quick]

Writes random weights of the preset's shape (cpu-13b-int4-infer or cpu-13b-int8-infer), as 'spark13b ckpt quantize'
stores them (7.2 or 13.9 GB), into a file that is deleted at the end, and answers from it in two processes, one after
the other: the first finds nothing in the page cache. Each tells how long it takes to have the model ready, reads a
prompt of 512 tokens, and decodes 16 tokens after it, in rounds; between them it measures the rate at which two threads
read 1 GB. A token needs all weights once: that is the bound. Resident memory is the largest of the process, the file's
mapped pages among it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from sides import THREADS

PROMPT, NEW = 512, 16
GIGABYTE = 1 << 30


def random_weights(preset: str, bits: Literal[4, 8], path: Path, assignments: list[str]) -> int:
    """A checkpoint as `ckpt quantize` writes it -> its bytes."""
    from spark13b.ckpt import write_checkpoint
    from spark13b.ckpt.dtypes import BFLOAT16
    from spark13b.ckpt.quantized import SCALES, Card, Choice
    from spark13b.config import load_preset
    from spark13b.model.names import expected_shapes, is_embedding

    model = load_preset(preset, assignments=assignments).model
    choices: dict[str, Choice] = {}
    for name, shape in expected_shapes(model).items():
        if len(shape) == 2 and not (is_embedding(name) and bits == 8):  # then it stays bfloat16
            choices[name] = Choice(bits=8 if is_embedding(name) else bits, group=64)
    rng = np.random.default_rng(0)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, shape in expected_shapes(model).items():
            if is_embedding(name) and name not in choices:
                yield name, (rng.standard_normal(shape, np.float32) * np.float32(0.02)).astype(BFLOAT16)
                continue
            if name not in choices:
                yield name, (np.ones if name.endswith("gamma") else np.zeros)(shape, np.float32)
                continue
            array, scales = choices[name].stored(name, shape)
            yield name, rng.integers(-127 if array.dtype == np.int8 else 0, 128, array.shape, array.dtype)
            yield name + SCALES, np.full(scales.shape, 0.02 / 64, BFLOAT16)

    write_checkpoint(path, tensors(), "safetensors", metadata=Card(tensors=choices).metadata())
    return path.stat().st_size


def answer(preset: str, weights: Path, rounds: int, assignments: list[str]) -> dict[str, float]:
    """In a process of its own."""
    start = time.perf_counter()
    from spark13b.ckpt import open_checkpoint
    from spark13b.config import load_preset
    from spark13b.infer.native_decoder import NativeDecoder
    from spark13b.infer.native_model import open_native
    from spark13b.native.library import find_library

    library = find_library().library
    assert library is not None, "build it: spark13b native build"
    config = load_preset(preset, assignments=assignments).model
    with open_checkpoint(weights) as base:
        decoder = NativeDecoder(open_native(base, config, library), 1024, 0, 512)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, PROMPT).tolist()
    ready = time.perf_counter() - start
    decoder.read(ids[:1], 0)
    first = time.perf_counter() - start
    block = np.ones(GIGABYTE // 4, np.float32)
    prompts, answers, rates = [], [], []
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            decoder.read(ids, 0)
            prompts.append(PROMPT / (time.perf_counter() - start))
            start = time.perf_counter()
            for at in range(NEW):
                decoder.step([0], [7], [PROMPT + at])
            answers.append(NEW / (time.perf_counter() - start))
            start = time.perf_counter()
            list(pool.map(np.max, np.split(block, THREADS)))
            rates.append(GIGABYTE / (time.perf_counter() - start))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "ready": ready,
        "first": first,
        "prompt": statistics.median(prompts),
        "answer": statistics.median(answers),
        "bandwidth": statistics.median(rates),
        "peak": int(status["VmHWM"].split()[0]) * 1024 - block.nbytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument(
        "--folder", type=Path, help="where there are 8 or 14 GB [default: the system's temporary folder]"
    )
    parser.add_argument("--preset", help="[default: that of the bits]")
    parser.add_argument("--quick", action="store_true", help="two layers, to see that the script runs")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    assignments = ["model.num_layers=2"] if arguments.quick else []
    preset = arguments.preset or f"cpu-13b-int{arguments.bits}-infer"
    if arguments.work:
        print(json.dumps(answer(preset, arguments.work, arguments.rounds, assignments)))
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        weights = folder / "model.safetensors"
        nbytes = random_weights(preset, arguments.bits, weights, assignments)
        descriptor = os.open(weights, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        command = [sys.executable, __file__, "--work", str(weights), "--rounds", str(arguments.rounds)]
        command += ["--preset", preset, *(["--quick"] if arguments.quick else [])]
        runs = [
            json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout) for _ in range(2)
        ]
    finally:
        shutil.rmtree(folder)
    bound = runs[1]["bandwidth"] / nbytes
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    print(f"{nbytes / 1e9:.2f} GB of weights; memory is read at {runs[1]['bandwidth'] / 1e9:.1f} GB/s\n")
    print("| | first process | second process |\n|---|---|---|")
    for name, unit, shown in (
        ("model ready", "s", "ready"),
        ("first token of a prompt of 1", "s", "first"),
        (f"prompt of {PROMPT}", "tokens/s", "prompt"),
        ("answer", "tokens/s", "answer"),
    ):
        print(f"| {name}, {unit} | {runs[0][shown]:.2f} | {runs[1][shown]:.2f} |")
    print(
        f"| of the bound of {bound:.2f} tokens/s | {runs[0]['answer'] / bound:.2f} | {runs[1]['answer'] / bound:.2f} |"
    )
    print(f"| largest resident memory, GiB | {runs[0]['peak'] / GIGABYTE:.2f} | {runs[1]['peak'] / GIGABYTE:.2f} |")


if __name__ == "__main__":
    main()
