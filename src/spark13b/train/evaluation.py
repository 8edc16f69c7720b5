"""How well a model knows rows that it was not trained on: loss, perplexity and token accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from spark13b.config.preset import Preset
from spark13b.errors import InputError
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.cross_entropy import cross_entropy
from spark13b.model.loss import Alignment, align
from spark13b.model.mesh import ALONE, Mesh
from spark13b.model.transformer import SparkModel
from spark13b.progress import SILENT, Progress
from spark13b.train.job import Evaluation
from spark13b.train.rows import RowSource, check_rows


class Sums(nn.Cell):
    """inputs, targets, mask (B, T) -> sum of the negative log likelihood, of right targets, of the mask."""

    def __init__(self, model: SparkModel, mesh: Mesh = ALONE) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.cross_entropy = cross_entropy(mesh)

    def construct(self, inputs: Any, targets: Any, mask: Any) -> tuple[Any, Any, Any]:
        hidden, _, _ = self.model(inputs)
        logits = self.model.logits(hidden, self.model.table())
        targets, mask = targets.reshape((-1,)), mask.reshape((-1,))
        own = ops.gather_elements(logits, 1, targets.reshape((-1, 1))).reshape((-1,))
        right = ops.cast(own >= logits.max(-1), mindspore.float32)
        return (self.cross_entropy(logits, targets) * mask).sum(), (right * mask).sum(), mask.sum()


class Evaluator:
    """Evaluates a model on the rows of one file, `batch` at a time; every evaluation uses the same graph."""

    def __init__(
        self, model: SparkForCausalLM, path: Path, rows: int, batch: int, alignment: Alignment, progress: Progress
    ) -> None:
        self.source = RowSource(path, model.config.vocab_size)
        self.rows, self.batch, self.alignment, self.progress = rows, min(batch, rows), alignment, progress
        self.sums = Sums(model.transformer, model.setup.mesh)

    def run(self, wanted_to_stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        """Read all rows once, in the file's order; None when a stop was wanted before the end.

        Raises InputError when no target counts.
        """
        whole = self.rows // self.batch * self.batch
        stretches = [np.arange(whole).reshape(-1, self.batch), np.arange(whole, self.rows).reshape(1, -1)]
        total = np.zeros(3)
        with self.progress.track("evaluating", self.rows, "rows") as meter:
            for rows in self.source.steps(stretch for stretch in stretches if stretch.size):
                if wanted_to_stop():
                    return None
                missing = self.batch - len(rows.ids)  # rows of padding count nothing
                ids, mask = (np.pad(array, ((0, missing), (0, 0))) for array in (rows.ids, rows.mask))
                batch = (ids[:, :-1], ids[:, 1:], align(mask, self.alignment))
                sums = self.sums(*(Tensor(np.ascontiguousarray(array)) for array in batch))
                total += [float(value.asnumpy()) for value in sums]
                meter.advance(len(rows.ids))
        loss, right, tokens = total
        if not tokens:
            raise InputError(
                "no token of the rows counts", where=self.source.path, fix="evaluate on rows with answers in them"
            )
        return Evaluation(loss / tokens, right / tokens, int(tokens), self.rows)


def evaluate(
    preset: Preset, data: Path, load: Path, batch_size: int | None = None, progress: Progress = SILENT
) -> Evaluation:
    """Evaluate the weights at `load`. Raises InputError when they or the rows do not fit the preset's model."""
    from spark13b.ckpt import open_checkpoint
    from spark13b.model.device import check_machine

    check_machine(preset)
    info = check_rows(preset, data)
    model = SparkForCausalLM(preset.model, seed=None)
    with open_checkpoint(load) as weights:
        model.load_state(weights)
    batch = batch_size or preset.train.batch_size
    evaluation = Evaluator(model, data, info.rows, batch, preset.train.loss_mask_alignment, progress).run()
    assert evaluation is not None
    return evaluation
