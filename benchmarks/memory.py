"""The plan's memory beside the resident memory of a real run: three steps of `spark13b train`, each in its own process.

The measured number is the largest resident set of the process (VmHWM of /proc/self/status) when the run has ended.

    python benchmarks/memory.py [--shape NAME] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 3
# Runs the command, then tells the largest resident set. Not ru_maxrss, which begins with that of the parent.
PROGRAM = """
import json, sys
from spark13b.cli.main import run
status = run(sys.argv[1:])
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"status": status, "peak": int(lines["VmHWM"].split()[0]) * 1024}))
"""
ROWS = """
import sys
import numpy as np
from mindspore.mindrecord import FileWriter
path, rows, tokens, vocabulary = sys.argv[1], *map(int, sys.argv[2:])
writer = FileWriter(path, shard_num=1)
writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in ("input_ids", "loss_mask")})
ids = np.random.default_rng(0).integers(0, vocabulary, (rows, tokens + 1)).astype(np.int32)
writer.write_raw_data([{"input_ids": row, "loss_mask": np.ones_like(row)} for row in ids])
writer.commit()
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
            "train.steps": STEPS,
            "train.recompute": str(self.recompute).lower(),
            "schedule.warmup_steps": 0,
        }


SHAPES = {
    "wide weights": Shape("weights and Adam's state, 50M parameters", 1, 1536, 12, 12288, 8000, 64, 1, 64),
    "many tokens": Shape("activations of 16384 tokens, scores at once", 1, 256, 4, 1408, 1000, 256, 64, 256),
    "large vocabulary": Shape("logits of 2048 x 32000", 1, 128, 2, 256, 32000, 1024, 2, 1024),
    "long row": Shape("a row of 16384 tokens, block by block", 1, 256, 4, 1408, 1000, 16384, 1, 1024),
}


def main() -> None:
    """Measure the shapes, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="this one alone")
    parser.add_argument("--json", action="store_true", help="bytes, for programs")
    options = parser.parse_args()
    results = [measure(name) for name in ([options.shape] if options.shape else SHAPES)]
    if options.json:
        print(json.dumps(results))
        return
    print("| shape | dominated by | planned, MiB | measured, MiB | planned / measured |\n|---|---|---|---|---|")
    for row in results:
        planned, measured = row["planned"], row["measured"]
        facts = f"{planned / 2**20:,.0f} | {measured / 2**20:,.0f} | {planned / measured:.2f}"
        print(f"| {row['shape']} | {SHAPES[row['shape']].dominated} | {facts} |")


def measure(name: str) -> dict[str, Any]:
    """Plan and run one shape: bytes planned and measured."""
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        rows, run = Path(folder, "rows.mindrecord"), Path(folder, "run")
        make_rows = map(str, (rows, shape.batch * 2, shape.tokens, shape.vocabulary))
        subprocess.run([sys.executable, "-c", ROWS, *make_rows], check=True, capture_output=True)
        command = ["train", "--preset", "cpu-tiny-pretrain"]
        for key, value in shape.assignments.items():
            command += ["--set", f"{key}={value}"]
        plan = output([sys.executable, "-m", "spark13b", *command, "--dry-run", "--json"])
        ended = output([sys.executable, "-c", PROGRAM, *command, "--data", str(rows), "--output", str(run)])
    measured = json.loads(ended.splitlines()[-1])
    assert measured["status"] == 0
    return {"shape": name, "planned": json.loads(plan)["memory"]["total"], "measured": measured["peak"]}


def output(command: list[str]) -> str:
    """What a command prints; its messages when it fails."""
    environment = {**os.environ, "SPARK13B_NATIVE": "0"}  # the plan is that of MindSpore's operators
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    return result.stdout


if __name__ == "__main__":
    main()
