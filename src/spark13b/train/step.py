"""One training step: loss, gradients, clipping, update; one graph, or one that adds gradients up and one that ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from spark13b.config.preset import Preset
from spark13b.model.causal_lm import SparkForCausalLM, set_parameter
from spark13b.model.collectives import all_reduce
from spark13b.model.dropout import dropout_key
from spark13b.model.loss import TINY, TotalLoss
from spark13b.model.mesh import Mesh
from spark13b.model.native_training import NativeGradients
from spark13b.model.quantized import TrainedModel
from spark13b.model.transformer import Setup
from spark13b.native.failures import operator_failures
from spark13b.train.gradients import GlobalNorm, Reduce
from spark13b.train.native_update import NativeUpdate, can_update
from spark13b.train.optimizer import AdamW
from spark13b.train.placement import Placement, placement
from spark13b.train.recompute import RecomputedGradients


class Step:
    """What the training loop calls: the rows of this process -> loss and gradient norm of the whole batch.

    With `accumulation` above 1 the rows go through the model in so many parts, whose gradients are added up in float32.
    With `recompute` no activations inside a layer are kept, see `recompute.py`. With `guard` (for a dynamic loss scale)
    gradients that are not finite change nothing; the norm tells.
    """

    def __init__(
        self,
        model: TrainedModel,
        optimizer: AdamW,
        placements: Sequence[Placement],
        clip_norm: float | None,
        guard: bool = False,
        accumulation: int = 1,
        seed: int = 0,
        recompute: bool = False,
    ) -> None:
        self.mesh, self.accumulation, self.seed = model.setup.mesh, accumulation, seed
        update: nn.Cell
        if model.library is not None and can_update(optimizer):
            update = NativeUpdate(model.library, optimizer, clip_norm, guard)
        else:
            update = _Update(optimizer, placements, self.mesh, clip_norm, guard)
        gradients = _Gradients(model, optimizer.parameters, recompute)
        if accumulation == 1:
            self.whole = _WholeStep(gradients, update)
        else:
            self.part = _Accumulate(gradients, optimizer.parameters)
            self.end = _End(self.part, update)

    def __call__(
        self, ids: np.ndarray, mask: np.ndarray, rate: float, decay: float, scale: float, step: int
    ) -> tuple[float, float]:
        """ids (R, T+1), mask (R, T) by target: this process's R rows -> loss and gradient norm of the batch.

        `rate`, `decay`: see `optimizer.corrected`; `scale`: the loss scale, 1 for none; `step` counts from 0. Raises
        JobError when the native library fails.
        """
        rows, tokens = ids.shape[0] // self.accumulation, ids.shape[1] - 1
        count = _number(mask.sum(dtype=np.float64))
        numbers = [_number(value) for value in (rate, decay, scale)]
        loss = norm = 0.0
        with operator_failures():
            for part in range(self.accumulation):
                own = slice(part * rows, (part + 1) * rows)
                first = self.mesh.data.index * ids.shape[0] + part * rows
                batch = (ids[own, :-1], ids[own, 1:], mask[own], dropout_key(self.seed, step, first, tokens))
                tensors = [Tensor(np.ascontiguousarray(array)) for array in batch]
                if self.accumulation == 1:
                    loss, norm = (float(value.asnumpy()) for value in self.whole(*tensors, count, *numbers))
                else:
                    loss += float(self.part(*tensors, count, numbers[2], _number(part > 0)).asnumpy())
            if self.accumulation > 1:
                norm = float(self.end(*numbers).asnumpy())
                if not np.isfinite(norm):
                    self.part.clear()
        return loss, norm


def make_step(model: TrainedModel, preset: Preset) -> tuple[AdamW, Step]:
    """Optimizer and step for what `model` trains, as the preset says."""
    trained, mesh, train = model.trainable(), model.setup.mesh, preset.train
    placements = [
        placement(name, tuple(one.shape), mesh, preset.parallel.optimizer_shard) for name, one in trained.items()
    ]
    optimizer = AdamW(list(trained.values()), preset.optimizer, placements, mesh)
    guard = train.loss_scale == "dynamic"
    clip = preset.optimizer.clip_norm
    return optimizer, Step(
        model, optimizer, placements, clip, guard, train.accumulation_steps, train.seed, train.recompute
    )


def make_setup(preset: Preset, mesh: Mesh) -> Setup:
    """The model's setup in a training run."""
    train, divided = preset.train, mesh.model.size > 1 and not mesh.sequence_parallel
    return Setup(
        mesh,
        preset.lora if preset.task == "lora" else None,
        train.dropout,
        slice_activations=divided and train.recompute and train.recompute_slice_activations,
    )


class _Gradients(nn.Cell):
    """A batch -> its summand of the loss, times the loss scale, and the gradients of that."""

    def __init__(self, model: TrainedModel, parameters: Sequence[Parameter], recompute: bool) -> None:
        super().__init__(auto_prefix=False)
        self.data_sum = all_reduce(model.setup.mesh.data)
        if model.library is not None:
            self.value_and_gradients = NativeGradients(model.library, model.native_parameters(), recompute)
            return
        assert isinstance(model, SparkForCausalLM)
        if recompute:
            self.value_and_gradients = RecomputedGradients(model, parameters)
        else:
            self.value_and_gradients = ops.value_and_grad(
                _ScaledLoss(model), grad_position=None, weights=ParameterTuple(parameters)
            )

    def construct(self, inputs: Any, targets: Any, mask: Any, key: Any, count: Any, scale: Any) -> tuple[Any, Any]:
        """`count`: targets that this process learns in the whole step -> the loss of all processes, gradients."""
        total = self.data_sum(count.reshape((1,))).reshape(()) + TINY
        scaled, gradients = self.value_and_gradients(inputs, targets, mask, key, scale / total)
        return self.data_sum(scaled.reshape((1,))).reshape(()) / scale, gradients


class _ScaledLoss(nn.Cell):
    def __init__(self, model: SparkForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.loss = TotalLoss(model.transformer, model.setup.mesh)

    def construct(self, inputs: Any, targets: Any, mask: Any, key: Any, factor: Any) -> Any:
        return self.loss(inputs, targets, mask, key) * factor


class _Update(nn.Cell):
    """Gradients of this process -> the global norm; updates parameters and optimizer in place."""

    def __init__(
        self, optimizer: AdamW, placements: Sequence[Placement], mesh: Mesh, clip_norm: float | None, guard: bool
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer, self.clip_norm, self.guard = optimizer, clip_norm, guard
        self.reduce, self.norm = Reduce(placements, mesh), GlobalNorm(placements, mesh)
        self.mul_no_nan = ops.MulNoNan()

    def construct(self, gradients: Any, rate: Any, decay: Any, scale: Any) -> Any:
        gradients = self.reduce(gradients)
        norm = self.norm(gradients) / scale
        # cast once more, behind the norm, so that float32 copies of all gradients need not be held at once
        gradients = [ops.cast(ops.depend(gradient, norm), mindspore.float32) for gradient in gradients]
        factor = 1.0 / scale
        if self.clip_norm is not None:
            factor = factor * (self.clip_norm / (ops.maximum(norm, self.clip_norm) + 1e-6))
        keep = ops.ones_like(scale)
        if self.guard:
            keep = ops.cast(ops.isfinite(norm), mindspore.float32)
            factor = self.mul_no_nan(factor, keep)  # 0 times nan is 0 here
            gradients = [self.mul_no_nan(gradient, factor) for gradient in gradients]
        else:
            gradients = [gradient * factor for gradient in gradients]
        # Behind the norm, and so behind every gradient: an update in place must not overtake the backward pass, which
        # still reads the weights. MindSpore keeps this order by itself only for what it sees as data.
        self.optimizer(tuple(gradients), keep, ops.depend(rate, norm), decay)
        return norm


class _WholeStep(nn.Cell):
    def __init__(self, gradients: _Gradients, update: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(
        self, inputs: Any, targets: Any, mask: Any, key: Any, count: Any, rate: Any, decay: Any, scale: Any
    ) -> tuple[Any, Any]:
        loss, gradients = self.gradients(inputs, targets, mask, key, count, scale)
        return loss, self.update(gradients, rate, decay, scale)


class _Accumulate(nn.Cell):
    """Add the gradients of one part of the batch to float32 sums."""

    def __init__(self, gradients: _Gradients, parameters: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = gradients
        self.sums = ParameterTuple(
            [
                Parameter(ops.zeros(one.shape, mindspore.float32), name=f"grad_accum.{one.name}", requires_grad=False)
                for one in parameters
            ]
        )

    def construct(self, inputs: Any, targets: Any, mask: Any, key: Any, count: Any, scale: Any, keep: Any) -> Any:
        """`keep`: 0 begins anew, 1 adds"""
        loss, gradients = self.gradients(inputs, targets, mask, key, count, scale)
        for index, gradient in enumerate(gradients):
            total = self.sums[index]
            ops.assign(total, total * keep + ops.cast(gradient, mindspore.float32))
        return loss

    def clear(self) -> None:
        """Forget sums that are not finite: 0 times nan would keep them."""
        for total in self.sums:
            set_parameter(total, np.zeros(total.shape, np.float32))


class _End(nn.Cell):
    """End a step whose gradients have been added up."""

    def __init__(self, part: _Accumulate, update: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.update = part.sums, update

    def construct(self, rate: Any, decay: Any, scale: Any) -> Any:
        return self.update([total * 1.0 for total in self.sums], rate, decay, scale)


def _number(value: Any) -> Tensor:
    return Tensor(np.float32(value))
