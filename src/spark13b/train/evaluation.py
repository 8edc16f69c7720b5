"""How well a model knows rows that it was not trained on: loss, perplexity and token accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from spark13b.ckpt.adapters import parts_of
from spark13b.config.preset import Preset
from spark13b.errors import InputError
from spark13b.model.attention.choose import for_training
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.collectives import any_of, total_over
from spark13b.model.cross_entropy import cross_entropy, hits
from spark13b.model.loss import Alignment, align
from spark13b.model.mesh import ALONE, Mesh, join
from spark13b.model.native_training import NativeSums
from spark13b.model.quantized import TrainedModel
from spark13b.model.transformer import Setup, SparkModel
from spark13b.native.failures import operator_failures
from spark13b.progress import SILENT, Progress
from spark13b.train.job import Evaluation
from spark13b.train.lora import model_on
from spark13b.train.rows import RowSource, check_rows


class Sums(nn.Cell):
    """inputs, targets, mask (B, T) -> sum of the negative log likelihood, of right targets, of the mask."""

    def __init__(self, model: SparkModel, mesh: Mesh = ALONE) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.cross_entropy, self.hits = cross_entropy(mesh), hits(mesh)

    def construct(self, inputs: Any, targets: Any, mask: Any) -> tuple[Any, Any, Any]:
        hidden, _, _ = self.model(inputs)
        logits = self.model.logits(hidden, self.model.table())
        targets, mask = targets.reshape((-1,)), mask.reshape((-1,))
        right = self.hits(logits, targets)
        return (self.cross_entropy(logits, targets) * mask).sum(), (right * mask).sum(), mask.sum()


class Evaluator:
    """Evaluates a model on the rows of one file, `batch` at a time; every evaluation uses the same graph.

    Data-parallel groups share the rows; all processes evaluate together and get the same result.
    """

    def __init__(
        self, model: TrainedModel, path: Path, rows: int, batch: int, alignment: Alignment, progress: Progress
    ) -> None:
        data = model.setup.mesh.data
        self.rows, self.alignment, self.progress = rows, alignment, progress
        self.together = min(batch, -(-rows // data.size)) * data.size  # rows that the groups take at once
        self.part = data.part(self.together)
        self.source = RowSource(path, model.config.vocab_size, self.part)
        self.sums: nn.Cell
        if model.library is not None:
            self.sums = NativeSums(model.library, model.native_parameters())
        else:
            assert isinstance(model, SparkForCausalLM)
            self.sums = Sums(model.transformer, model.setup.mesh)
        self.stop, self.total = any_of(model.setup.mesh), total_over(data)

    def run(self, wanted_to_stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        """Read all rows once, in the file's order; None when a stop was wanted before the end.

        Raises InputError when no target counts, JobError when the native library fails.
        """
        batches = -(-self.rows // self.together)
        numbers = np.arange(batches * self.together).reshape(batches, self.together)
        beyond = numbers >= self.rows  # the last batch is filled with row 0, of which nothing counts
        total = np.zeros(3)
        with self.progress.track("evaluating", self.rows, "rows") as meter:
            read = self.source.steps([np.where(beyond, 0, numbers)])
            for rows, filling in zip(read, beyond, strict=True):
                if self.stop(wanted_to_stop()):
                    read.close()
                    return None
                mask = np.where(filling[self.part, None], 0, align(rows.mask, self.alignment))
                batch = (rows.ids[:, :-1], rows.ids[:, 1:], mask.astype(np.float32))
                with operator_failures():
                    sums = self.sums(*(Tensor(np.ascontiguousarray(array)) for array in batch))
                    own = np.array([float(value.asnumpy()) for value in sums])
                total += self.total(own)
                meter.advance(int((~filling).sum()))
        loss, right, tokens = total
        if not tokens:
            raise InputError(
                "no token of the rows counts", where=self.source.path, fix="evaluate on rows with answers in them"
            )
        return Evaluation(loss / tokens, right / tokens, int(tokens), self.rows)


def evaluate(
    preset: Preset,
    data: Path,
    load: Path,
    batch_size: int | None = None,
    progress: Progress = SILENT,
    adapter: Path | None = None,
) -> Evaluation:
    """Evaluate the weights at `load`, a LoRA run for example, or with the adapters at `adapter` beside them.

    All processes of a run call it and get the same. Raises InputError when weights or rows do not fit the model.
    """
    from spark13b.model.device import check_machine, device

    info = check_rows(preset, data)
    check_machine(preset)
    with parts_of(load, adapter).open(preset.model) as parts:
        config, setup = for_training(preset.model, device()), Setup(join(preset.parallel), parts.lora)
        model = model_on(parts.base, config, setup)
        if parts.adapters is not None:
            model.load_adapters(parts.adapters.tensors)
        doubt = parts.doubt()
    if doubt:
        progress.note(f"note: {doubt}")
    batch = batch_size or preset.train.batch_size
    evaluation = Evaluator(model, data, info.rows, batch, preset.train.loss_mask_alignment, progress).run()
    assert evaluation is not None
    return evaluation
