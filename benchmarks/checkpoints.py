"""Speed and memory of `spark13b convert` and `spark13b ckpt` beside `cp`, on the 13B model's true names and shapes.

A quarter of the layers by default (10, about 7 GB of bfloat16; 35 GB of disk), all 40 with `--full`. Every command is a
process of its own; each round runs all of them once, and `cp` among them, so that both sides meet the same disk. Before
each run the source leaves the page cache, and every run ends with its output on the disk (`cp` is followed by fsync,
as our commands end in one). Speeds are source bytes a second; the memory is the largest resident set of the process.

    python benchmarks/checkpoints.py [--full] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from spark13b.ckpt import BFLOAT16, TensorInfo, expected_shapes, open_checkpoint, write_checkpoint
from spark13b.ckpt.dtypes import FLOAT32, Array
from spark13b.ckpt.tensors import Derived, Recipe
from spark13b.ckpt.torch_names import to_torch
from spark13b.config import SparkConfig

SPARK = [sys.executable, "-m", "spark13b"]
SYNC_CP = "cp -a {source} {target} && sync -f {target}"


@dataclass(frozen=True)
class Command:
    """One line of the table: what is run on which source, and the share of `cp` it must reach."""

    label: str
    source: str
    arguments: tuple[str, ...]
    target: str
    bar: float | None


SHARDS = ("--to", "safetensors", "--shard-size", "2GB")
EIGHT_RANKS = ("--data-parallel", "2", "--model-parallel", "4")
COMMANDS = (
    Command("torch2ms", "torch.pt", ("convert", "torch2ms"), "out.ckpt", 0.6),
    Command("ms2torch", "weights.ckpt", ("convert", "ms2torch"), "out.pt", 0.6),
    Command("ckpt convert to safetensors", "weights.ckpt", ("ckpt", "convert"), "out.safetensors", 0.6),
    Command("ckpt convert to shards", "weights.ckpt", ("ckpt", "convert", *SHARDS), "out", 0.6),
    Command("ckpt split, 2 x 4", "weights.ckpt", ("ckpt", "split", *EIGHT_RANKS), "out", 0.6),
    Command("ckpt merge of these", "slices", ("ckpt", "merge"), "out.ckpt", 0.6),
    Command("dtype to float16", "weights.ckpt", ("convert", "dtype", "--dtype", "float16"), "out.ckpt", 0.35),
    Command("dtype float32 to bfloat16", "wide.ckpt", ("convert", "dtype", "--dtype", "bfloat16"), "out.ckpt", 0.35),
)


def main() -> None:
    """Make the sources, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all 40 layers")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="a folder on the disk to measure")
    options = parser.parse_args()
    config = SparkConfig(num_layers=40 if options.full else options.layers)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix=".bench-checkpoints-") as name:
        folder = Path(name)
        maker = multiprocessing.Process(target=make_sources, args=(folder, config))
        maker.start()  # elsewhere: a process counts what its parent held when it was started as its own memory
        maker.join()
        sources = sorted({command.source for command in COMMANDS})
        copies: dict[str, list[float]] = {source: [] for source in sources}
        runs: dict[str, list[tuple[float, float]]] = {command.label: [] for command in COMMANDS}
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for source in sources:
                copy = SYNC_CP.format(source=folder / source, target=folder / "copy")
                copies[source].append(measured(["sh", "-c", copy], folder / source, folder / "copy")[0])
                for command in COMMANDS:
                    if command.source == source:
                        target = folder / command.target
                        line = [*SPARK, *command.arguments, str(folder / source), str(target)]
                        runs[command.label].append(measured(line, folder / source, target))
        print_table(folder, config, copies, runs)


def make_sources(folder: Path, config: SparkConfig) -> None:
    """The same random weights as .ckpt, as torch's file, as slices, and a third of the layers as float32."""
    print("making the sources", file=sys.stderr)
    rng = np.random.default_rng(0)
    pool = rng.normal(0, 0.02, 1 << 24).astype(np.float32).astype(BFLOAT16)  # as wide as a trained layer's

    def weights(config: SparkConfig, dtype: np.dtype[np.generic]) -> Derived:
        infos = [TensorInfo(name, shape, dtype) for name, shape in expected_shapes(config).items()]
        recipes = [Recipe(info, partial(random, info)) for info in infos]
        return Derived(folder, "ckpt", recipes)

    def random(info: TensorInfo) -> Array:
        start = int(rng.integers(0, pool.size // 2))
        return np.resize(pool[start:], info.size).astype(info.dtype).reshape(info.shape)

    write_checkpoint(folder / "weights.ckpt", weights(config, BFLOAT16))
    with open_checkpoint(folder / "weights.ckpt") as source:
        write_checkpoint(folder / "torch.pt", to_torch(source), "torch")
    third = config.model_copy(update={"num_layers": max(1, config.num_layers // 3)})
    write_checkpoint(folder / "wide.ckpt", weights(third, FLOAT32))
    line = [*SPARK, "ckpt", "split", *EIGHT_RANKS, str(folder / "weights.ckpt"), str(folder / "slices")]
    subprocess.run(line, check=True, capture_output=True)


def measured(line: list[str], source: Path, target: Path) -> tuple[float, float]:
    """(seconds, largest resident MiB) of one process; its output is removed."""
    os.sync()
    for file in files(source):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    start = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    complaint = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(line)} failed:\n{complaint}")
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    return seconds, usage.ru_maxrss / 1024


def files(path: Path) -> Iterator[Path]:
    """A file itself, or the files in a folder."""
    yield from (child for child in path.rglob("*") if child.is_file()) if path.is_dir() else (path,)


def nbytes(path: Path) -> int:
    """Bytes on the disk; files with several names count once."""
    return sum({child.stat().st_ino: child.stat().st_size for child in files(path)}.values())


def print_table(
    folder: Path, config: SparkConfig, copies: dict[str, list[float]], runs: dict[str, list[tuple[float, float]]]
) -> None:
    """Markdown: medians and ratios."""
    with open_checkpoint(folder / "weights.ckpt") as weights, open_checkpoint(folder / "wide.ckpt") as wide:
        largest = {"wide.ckpt": max(i.nbytes for i in wide.infos.values())}
        usual = max(info.nbytes for info in weights.infos.values())
    print(f"{config.num_layers} layers; medians of {len(next(iter(runs.values())))} rounds\n")
    print("| command | source | seconds | GB/s | cp GB/s | of cp | bar | peak MiB | 1 GiB + largest tensor |")
    print("|---|---|---|---|---|---|---|---|---|")
    missed = []
    for command in COMMANDS:
        size = nbytes(folder / command.source)
        seconds = statistics.median(run[0] for run in runs[command.label])
        peak = max(run[1] for run in runs[command.label])
        copy = statistics.median(copies[command.source])
        limit = 1024 + largest.get(command.source, usual) / 2**20
        ratio = copy / seconds
        print(
            f"| {command.label} | {size / 1e9:.1f} GB | {seconds:.1f} | {size / seconds / 1e9:.2f} | "
            f"{size / copy / 1e9:.2f} | {ratio:.2f} | {command.bar} | {peak:.0f} | {limit:.0f} |"
        )
        if (command.bar and ratio < command.bar) or peak > limit:
            missed.append(command.label)
    if missed:
        raise SystemExit(f"below the bar: {', '.join(missed)}")


if __name__ == "__main__":
    main()
