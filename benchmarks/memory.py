"""The plan's memory beside the resident memory of a real run: three steps of `spark13b train`, each in its own process.

The measured number is the largest resident set of the process (VmHWM of /proc/self/status) when the run has ended.

    python benchmarks/memory.py [--shape NAME] [--steps N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spark13b.config import load_preset
from spark13b.data.mindrecord_writer import MindRecordWriter
from spark13b.train.memory import training_memory

STEPS = 3
# Runs the command, then tells the largest resident set. Not ru_maxrss, which begins with that of the parent.
PROGRAM = """
import json, sys
from spark13b.cli.main import run
status = run(sys.argv[1:])
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"status": status, "peak": int(lines["VmHWM"].split()[0]) * 1024}))
"""


@dataclass(frozen=True)
class Shape:
    """A model and a batch, by what they differ in from cpu-tiny-pretrain; `dominated` says by what."""

    dominated: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    vocabulary: int
    tokens: int
    batch: int
    window: int
    recompute: bool = False
    native: bool = False  # by the native library, else by MindSpore's operators
    compute_type: str = "float32"

    @property
    def assignments(self) -> dict[str, Any]:
        """Values of the preset by dotted key."""
        return {
            "model.num_layers": self.layers,
            "model.hidden_size": self.hidden,
            "model.num_heads": self.heads,
            "model.ffn_hidden_size": self.ffn,
            "model.vocab_size": self.vocabulary,
            "model.seq_length": self.tokens,
            "model.sparse_local_size": self.window,
            "train.batch_size": self.batch,
            "train.recompute": self.recompute,
            "model.compute_type": self.compute_type,
            "schedule.warmup_steps": 0,
        }


SHAPES = {
    "wide weights": Shape("weights and Adam's state, 50M parameters", 1, 1536, 12, 12288, 8000, 64, 1, 64),
    "many tokens": Shape("activations of 16384 tokens, scores at once", 1, 256, 4, 1408, 1000, 256, 64, 256),
    "large vocabulary": Shape("logits of 2048 x 32000", 1, 128, 2, 256, 32000, 1024, 2, 1024),
    "long row": Shape("a row of 16384 tokens, block by block", 1, 256, 4, 1408, 1000, 16384, 1, 1024),
}
SHAPES |= {f"{name}, native": replace(shape, dominated="the same", native=True) for name, shape in SHAPES.items()}
SHAPES |= {
    "deep, native, recomputed": Shape("activations of 4 layers", 4, 256, 4, 1408, 1000, 256, 32, 256, True, True),
    "large vocabulary, native, bfloat16": replace(SHAPES["large vocabulary, native"], compute_type="bfloat16"),
}


def main() -> None:
    """Measure the shapes, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="this one alone")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", action="store_true", help="bytes, for programs")
    options = parser.parse_args()
    results = [measure(name, options.steps) for name in ([options.shape] if options.shape else SHAPES)]
    if options.json:
        print(json.dumps(results))
        return
    print("| shape | dominated by | planned, MiB | measured, MiB | planned / measured |\n|---|---|---|---|---|")
    for row in results:
        planned, measured = row["planned"], row["measured"]
        facts = f"{planned / 2**20:,.0f} | {measured / 2**20:,.0f} | {planned / measured:.2f}"
        print(f"| {row['shape']} | {SHAPES[row['shape']].dominated} | {facts} |")


def measure(name: str, steps: int) -> dict[str, Any]:
    """Plan and run one shape: bytes planned and measured."""
    shape = SHAPES[name]
    os.environ["SPARK13B_NATIVE"] = "" if shape.native else "0"  # of the plan and of the run
    assignments = shape.assignments | {"train.steps": steps}
    planned = training_memory(load_preset("cpu-tiny-pretrain", options=assignments), shape.tokens).total
    with tempfile.TemporaryDirectory() as folder:
        rows, run = Path(folder, "rows.mindrecord"), Path(folder, "run")
        make_rows(rows, shape)
        command = ["train", "--preset", "cpu-tiny-pretrain", "--data", str(rows), "--output", str(run)]
        for key, value in assignments.items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        ended = output([sys.executable, "-c", PROGRAM, *command])
    measured = json.loads(ended.splitlines()[-1])
    assert measured["status"] == 0
    return {"shape": name, "planned": planned, "measured": measured["peak"]}


def make_rows(path: Path, shape: Shape) -> None:
    """Two batches of random tokens, all of them targets."""
    ids = np.random.default_rng(0).integers(0, shape.vocabulary, (2 * shape.batch, shape.tokens + 1)).astype(np.int32)
    writer = MindRecordWriter(path, ("input_ids", "loss_mask"))
    writer.write({"input_ids": ids, "loss_mask": np.ones_like(ids)})
    writer.commit()


def output(command: list[str]) -> str:
    """What a command prints; its messages when it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    return result.stdout


if __name__ == "__main__":
    main()
