"""Run exported graphs as a deployment does, and see which tokens they choose. `check.py` runs this in its own process.

python -m spark13b.infer.export.run_back FOLDER QUESTIONS.json RESULTS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn

from spark13b.infer.export.manifest import read_manifest
from spark13b.model.device import device


class ExportedModel:
    """The graphs in a folder, loaded: `prefill` begins up to `batch_size` texts, `step` adds a token to each."""

    def __init__(self, folder: Path) -> None:
        device()  # graph mode
        self.manifest = read_manifest(folder)
        self._prefill, self._decode = (
            nn.GraphCell(mindspore.load(str(folder / graph.file)))
            for graph in (self.manifest.prefill, self.manifest.decode)
        )
        self._positions = np.zeros(self.manifest.batch_size, np.int32)
        self._rings: Sequence[Any] = ()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Prompts of 1 to `prompt_length` ids, `batch_size` of them -> logits (B, V) after each."""
        ids = np.full((len(prompts), self.manifest.prompt_length), self.manifest.pad_id, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        self._positions = np.array([len(prompt) for prompt in prompts], np.int32)
        logits, *self._rings = self._prefill(Tensor(ids), Tensor(self._positions))
        return np.asarray(logits.asnumpy())

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """The next token of each text -> logits (B, V) after it. At the context's end a text repeats its last place."""
        positions = np.minimum(self._positions, self.manifest.context - 1)
        self._positions = self._positions + np.int32(1)
        logits, *self._rings = self._decode(
            Tensor(np.asarray(tokens, np.int32)), Tensor(positions.astype(np.int32)), *self._rings
        )
        return np.asarray(logits.asnumpy())


def run_back(folder: Path, questions: Sequence[dict[str, list[int]]]) -> list[dict[str, Any]]:
    """Let the graphs follow texts, `prompt` and then `tokens`, and say what they would have chosen at each place.

    For each text: `chosen`, and `short`, by how much the logit of the given token is below that of the chosen one,
    as a share of the largest logit in size.
    """
    model = ExportedModel(folder)
    size = model.manifest.batch_size
    results: list[dict[str, Any]] = []
    for first in range(0, len(questions), size):
        some = questions[first : first + size]
        rows = [*some, *[some[-1]] * (size - len(some))]  # a batch is always full
        found: list[dict[str, Any]] = [{"chosen": [], "short": []} for _ in rows]
        logits = model.prefill([row["prompt"] for row in rows])
        for place in range(max(len(row["tokens"]) for row in rows)):
            given = [row["tokens"][min(place, len(row["tokens"]) - 1)] for row in rows]
            for row, result, token, scores in zip(rows, found, given, logits, strict=True):
                if place < len(row["tokens"]):
                    best = int(scores.argmax())
                    result["chosen"].append(best)
                    result["short"].append(float((scores[best] - scores[token]) / np.abs(scores).max()))
            logits = model.step(given)
        results += found[: len(some)]
    return results


if __name__ == "__main__":
    where, asked, answers = map(Path, sys.argv[1:])
    answers.write_text(json.dumps(run_back(where, json.loads(asked.read_text()))))
