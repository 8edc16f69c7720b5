"""LoRA of the whole 13B model beside int4 weights on this machine: time and memory of a step, answers with adapters.

    python benchmarks/thirteen_billion_lora.py [--tokens 256] [--rounds 3] [--folder DIR] [--file FILE] [--quick]

Writes random weights as thirteen_billion.py does (7.2 GB, deleted at the end), or takes those of --file, and trains the
adapters of the preset cpu-13b-int4-lora beside them, on random rows of so many tokens, one a step, in a process of its
own; its largest resident memory, the file's mapped pages among it, stands beside what '--dry-run' plans. Another
process reads a prompt of 512 tokens and decodes 16 tokens after it, with adapters and without, by turns. Processor time
says what a step would take on cores of its own.
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
from pathlib import Path
from typing import Any

import numpy as np
from thirteen_billion import GIGABYTE, NEW, PROMPT, random_weights

PRESET = "cpu-13b-int4-lora"


def train(weights: Path, tokens: int, rounds: int, assignments: list[str]) -> dict[str, Any]:
    """In a process of its own."""
    from spark13b.ckpt import open_checkpoint
    from spark13b.ckpt.mapping import mapped_parameters
    from spark13b.ckpt.quantized import QuantizedCheckpoint
    from spark13b.config import load_preset
    from spark13b.model.mesh import ALONE
    from spark13b.model.quantized import QuantizedLora
    from spark13b.train.memory import training_memory
    from spark13b.train.rounded import RoundedBase
    from spark13b.train.step import make_setup, make_step

    preset = load_preset(PRESET, assignments=assignments)
    with open_checkpoint(weights) as base:
        assert isinstance(base, QuantizedCheckpoint)
        planned = training_memory(preset, tokens, RoundedBase.of(base, preset.model))
        model = QuantizedLora(preset.model, mapped_parameters(base, preset.model), make_setup(preset, ALONE))
    model.begin_adapters(0)
    _, step = make_step(model, preset)
    rng, taken, worked = np.random.default_rng(0), [], []
    for number in range(rounds + 1):  # the first one compiles, and reads the file
        ids = rng.integers(0, preset.model.vocab_size, (1, tokens + 1), np.int32)
        start, began = time.perf_counter(), time.process_time()
        step(ids, np.ones((1, tokens), np.float32), 1e-4, 0.0, 1.0, number)
        taken.append(time.perf_counter() - start)
        worked.append(time.process_time() - began)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "first": taken[0],
        "step": statistics.median(taken[1:]),
        "processor": statistics.median(worked[1:]),
        "peak": int(status["VmHWM"].split()[0]) * 1024,
        "planned": planned.total,
        "says": model.describe_training(1, tokens),
    }


def answer(weights: Path, rounds: int, assignments: list[str]) -> dict[str, Any]:
    """In a process of its own."""
    from spark13b.ckpt import open_checkpoint
    from spark13b.config import load_preset
    from spark13b.infer.native_decoder import NativeDecoder
    from spark13b.infer.native_model import NativeAdapters, open_native
    from spark13b.model.names import adapter_shapes
    from spark13b.native.library import find_library

    library = find_library().library
    assert library is not None, "build it: spark13b native build"
    preset, rng = load_preset(PRESET, assignments=assignments), np.random.default_rng(0)
    shapes = adapter_shapes(preset.model, preset.lora)
    arrays = {name: 0.01 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    with open_checkpoint(weights) as base:
        models = [
            open_native(base, preset.model, library, adapters)
            for adapters in (None, NativeAdapters(preset.lora, arrays))
        ]
    decoders = [NativeDecoder(model, 1024, 0, PROMPT) for model in models]
    ids = rng.integers(0, preset.model.vocab_size, PROMPT).tolist()
    prompts: tuple[list[float], list[float]] = ([], [])
    answers: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for which, decoder in enumerate(decoders):
            start = time.perf_counter()
            decoder.read(ids, 0)
            prompts[which].append(PROMPT / (time.perf_counter() - start))
            start = time.perf_counter()
            for at in range(NEW):
                decoder.step([0], [7], [PROMPT + at])
            answers[which].append(NEW / (time.perf_counter() - start))
    return {"prompt": [*map(statistics.median, prompts)], "answer": [*map(statistics.median, answers)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where there are 8 GB [default: the system's temporary folder]")
    parser.add_argument("--file", type=Path, help="int4 weights that are there already")
    parser.add_argument("--quick", action="store_true", help="two layers, to see that the script runs")
    parser.add_argument("--work", choices=("train", "answer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    assignments = ["model.num_layers=2"] if arguments.quick else []
    if arguments.work == "train":
        print(json.dumps(train(arguments.file, arguments.tokens, arguments.rounds, assignments)))
        return
    if arguments.work == "answer":
        print(json.dumps(answer(arguments.file, arguments.rounds, assignments)))
        return
    folder = None if arguments.file else Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        weights = arguments.file
        if folder is not None:
            weights = folder / "model.safetensors"
            random_weights(PRESET, 4, weights, assignments)
        command = [sys.executable, __file__, "--file", str(weights), "--rounds", str(arguments.rounds)]
        command += ["--tokens", str(arguments.tokens), *(["--quick"] if arguments.quick else [])]
        trained, answered = (
            json.loads(subprocess.run([*command, "--work", work], stdout=subprocess.PIPE, check=True, text=True).stdout)
            for work in ("train", "answer")
        )
    finally:
        if folder is not None:
            shutil.rmtree(folder)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    print(f"{trained['says']}\n\n| a step of 1 x {arguments.tokens} tokens | |\n|---|---|")
    print(f"| the first one, with the compilation, s | {trained['first']:.1f} |")
    print(f"| a later one, s | {trained['step']:.1f} |")
    print(f"| its processor time, s | {trained['processor']:.1f} |")
    print(f"| largest resident memory, GiB | {trained['peak'] / GIGABYTE:.2f} |")
    print(f"| as planned, GiB | {trained['planned'] / GIGABYTE:.2f} |")
    print("\n| tokens/s | without adapters | with adapters |\n|---|---|---|")
    for name in ("prompt", "answer"):
        print(f"| {name} | {answered[name][0]:.2f} | {answered[name][1]:.2f} |")


if __name__ == "__main__":
    main()
