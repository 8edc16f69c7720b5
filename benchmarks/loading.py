"""Loading a checkpoint to answer: its time beside reading the file alone, its memory beside the weights.

One model of random weights in every format that is read. Each load is a process of its own that has loaded a tiny model
before, so that libraries and compilers are there already: the memory is the largest resident set during the load, over
what was resident before it. Before each load and each reading the files leave the page cache.

    python benchmarks/loading.py [--layers 6] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spark13b.ckpt import BFLOAT16, expected_shapes, open_checkpoint, write_checkpoint
from spark13b.ckpt.layout import Layout
from spark13b.ckpt.slices import write_slices
from spark13b.ckpt.torch_names import to_torch
from spark13b.config import Preset, load_preset
from spark13b.native.library import find_library

BAR = 1.1  # of the weights
BUFFER = 8 << 20
# A process: the library or MindSpore ready, then the load. Tells seconds, and bytes over those before.
PROGRAM = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from spark13b.ckpt.adapters import parts_of
from spark13b.config import load_preset
from spark13b.infer.loading import load_model
from spark13b.infer.session import FoundModel

def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024

def found(preset, weights):
    return FoundModel(load_preset(preset), parts_of(Path(weights), None), None, False)

tiny, model = found(*sys.argv[1:3]), found(*sys.argv[3:5])
load_model(tiny)
open("/proc/self/clear_refs", "w").write("5")  # the highest mark begins here
before, start = status("VmRSS"), time.perf_counter()
loaded, _ = load_model(model)
print(json.dumps({"seconds": time.perf_counter() - start, "bytes": status("VmHWM") - before}))
"""


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    file: str
    engine: str
    type: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SPARK13B_NATIVE": "" if self.engine == "native library" else "0", "GLOG_v": "3"}


FORMATS = ("safetensors", "safetensors shards", "ckpt", "ckpt slices, 2 x 2", "torch")
CASES = (
    *(Case(name, "native library", "float32") for name in FORMATS),
    *(Case(name, "native library", "bfloat16") for name in FORMATS),
    *(Case(name, "MindSpore", "float32") for name in FORMATS),
)


def main() -> None:
    """Write the model in every format, load it by turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="a folder on the disk to measure")
    options = parser.parse_args()
    found = find_library()
    cases = [case for case in CASES if case.engine == "MindSpore" or found.library is not None]
    if len(cases) < len(CASES):
        print(f"without the native library: {found.reason}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix=".bench-loading-") as name:
        folder = Path(name)
        for kind in ("float32", "bfloat16"):
            writer = multiprocessing.Process(target=write_all, args=(folder / kind, kind, options.layers))
            writer.start()  # elsewhere: a process counts what its parent held when it was started as its own memory
            writer.join()
            if writer.exitcode:
                raise SystemExit("the files could not be written")
        runs: dict[Case, list[tuple[float, int]]] = {case: [] for case in cases}
        readings: dict[Case, list[float]] = {case: [] for case in cases}
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for case in cases:
                readings[case].append(read_alone(path_of(folder, case)))
                runs[case].append(load(folder, case))
        print_table(folder, options.layers, options.rounds, runs, readings)


def preset_of(kind: str, layers: int) -> Preset:
    """Six layers are 0.5 billion parameters; none: the preset as it is, with one layer."""
    sizes = {"hidden_size": 2048, "num_heads": 16, "ffn_hidden_size": 16384, "vocab_size": 32000}
    shape = {f"model.{name}": size for name, size in sizes.items()} if layers else {}
    types = {f"model.{name}": kind for name in ("compute_type", "embedding_init_type")}
    return load_preset("cpu-tiny-infer", options={**shape, "model.num_layers": layers or 1, **types})


def write_all(folder: Path, kind: str, layers: int) -> None:
    """The same random weights in every format, and a tiny model."""
    folder.mkdir()
    for name, preset in (("tiny", preset_of(kind, 0)), ("model", preset_of(kind, layers))):
        (folder / f"{name}.yaml").write_text(preset.to_yaml(), encoding="utf-8")
        rng = np.random.default_rng(0)
        dtype = BFLOAT16 if kind == "bfloat16" else np.dtype(np.float32)
        weights = (
            (full, (0.02 * rng.standard_normal(shape, np.float32)).astype(dtype))
            for full, shape in expected_shapes(preset.model).items()
        )
        write_checkpoint(folder / f"{name}.safetensors", weights, "safetensors")
    with open_checkpoint(folder / "model.safetensors") as source:
        write_checkpoint(folder / "shards", source, "safetensors", shard_size=500_000_000)
        write_checkpoint(folder / "model.ckpt", source)
        write_slices(folder / "slices", source, Layout(2, 2))
        write_checkpoint(folder / "model.pt", to_torch(source), "torch")


def path_of(folder: Path, case: Case) -> Path:
    """Where the case's checkpoint is."""
    names = dict(zip(FORMATS, ("model.safetensors", "shards", "model.ckpt", "slices", "model.pt"), strict=True))
    return folder / case.type / names[case.file]


def files(path: Path) -> Iterator[Path]:
    """A file itself, or the files in a folder."""
    yield from (child for child in path.rglob("*") if child.is_file()) if path.is_dir() else (path,)


def leave_the_cache(path: Path) -> None:
    """Let the next reading come from the disk."""
    os.sync()
    for file in files(path):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_alone(path: Path) -> float:
    """Seconds of reading all bytes into one buffer."""
    leave_the_cache(path)
    buffer = bytearray(BUFFER)
    start = time.perf_counter()
    for file in files(path):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - start


def load(folder: Path, case: Case) -> tuple[float, int]:
    """Seconds and bytes of one load."""
    path, own = path_of(folder, case), folder / case.type
    leave_the_cache(path)
    arguments = (own / "tiny.yaml", own / "tiny.safetensors", own / "model.yaml", path)
    line = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(line, env=case.environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], found["bytes"]


def print_table(
    folder: Path,
    layers: int,
    rounds: int,
    runs: dict[Case, list[tuple[float, int]]],
    readings: dict[Case, list[float]],
) -> None:
    """Markdown: medians of the times, the largest memory."""
    print(f"{layers} layers; medians of {rounds} rounds\n")
    print("| format | type | loaded by | weights, MB | s | reading alone, s | ratio | memory, MB | of the weights |")
    print("|---|---|---|---|---|---|---|---|---|")
    missed = []
    for case in runs:
        with open_checkpoint(folder / case.type / "model.safetensors") as weights:
            size = weights.nbytes
        seconds, alone = statistics.median(run[0] for run in runs[case]), statistics.median(readings[case])
        peak = max(run[1] for run in runs[case])
        print(
            f"| {case.file} | {case.type} | {case.engine} | {size / 1e6:,.0f} | {seconds:.2f} | {alone:.2f} | "
            f"{alone / seconds:.2f} | {peak / 1e6:,.0f} | {peak / size:.3f} |"
        )
        if peak > BAR * size:
            missed.append(f"{case.file} in {case.type} by {case.engine}")
    if missed:
        raise SystemExit(f"over {BAR} times the weights: {', '.join(missed)}")


if __name__ == "__main__":
    main()
