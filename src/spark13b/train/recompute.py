"""Gradients with nothing kept but the input of each layer, which is computed again in its backward pass.

The chain rule is written out layer by layer, and a layer's second computation depends on the gradient that it is for.
MindSpore's own `recompute` finds no such gradient for cells that have a `bprop`, as ours on a CPU; there it computes
all layers again at once, in the forward pass, and holds more memory than without. (What its CPU kernels keep for
themselves remains: a transposition of 4 axes 16 bytes a number, for ever.)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from mindspore import Parameter, ParameterTuple, nn, ops

from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.loss import TotalLoss


class RecomputedGradients(nn.Cell):
    """inputs, targets, mask (B, T), key, factor -> factor times the summed loss, and the gradients of `parameters`.

    The same numbers as `ops.value_and_grad` of the whole model.
    """

    def __init__(self, model: SparkForCausalLM, parameters: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.model = model.transformer
        decoder = self.model.transformer
        self.begin, self.end = _Begin(model), _End(model)
        self.layers = [_Layer(block) for block in decoder.layers]
        trained = {parameter.name for parameter in parameters}
        table, norm = _own(self.model.embedding, trained), _own(decoder.layernorm, trained)
        in_layers = [_own(block, trained) for block in decoder.layers]
        # gradients come from the end to the begin: where each of `parameters` is then
        order = [*table, *norm, *(parameter for weights in reversed(in_layers) for parameter in weights)]
        names = [parameter.name for parameter in order]
        self.where = tuple(names.index(parameter.name) for parameter in parameters)
        self.trained_end = bool(table)  # the embedding, which comes first and is used at the begin, too
        self.table_weights = ParameterTuple(table)
        self.layer_weights = [ParameterTuple(weights) for weights in in_layers]
        end_weights = ParameterTuple([*table, *norm]) if table else None
        self.end_gradient = ops.value_and_grad(self.end, grad_position=0, weights=end_weights)
        self.layer_gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
        self.begin_gradient = ops.GradOperation(get_by_list=True, sens_param=True)

    def construct(self, inputs: Any, targets: Any, mask: Any, key: Any, factor: Any) -> tuple[Any, Any]:
        batch, tokens = inputs.shape
        cos, sin, band = self.model.transformer.shared(batch, tokens, self.model.zero(inputs))
        x = self.begin(inputs, key)
        kept = []
        for layer in self.layers:
            kept.append(x)
            x = layer(x, inputs, cos, sin, band, key)
        if self.trained_end:
            loss, (dx, found) = self.end_gradient(x, targets, mask, factor)
            gradients = [*found]
        else:
            loss, dx = self.end_gradient(x, targets, mask, factor)
            gradients = []
        for index in range(len(self.layers) - 1, -1, -1):
            again = self.layer_gradient(self.layers[index], self.layer_weights[index])
            # behind its gradient, or all layers would be computed again at once
            dinputs, found = again(ops.depend(kept[index], dx), inputs, cos, sin, band, key, dx)
            gradients += [*found]
            dx = ops.depend(dinputs[0], found)
        if self.trained_end:
            from_begin = self.begin_gradient(self.begin, self.table_weights)(inputs, key, dx)
            gradients[0] = gradients[0] + from_begin[0]
        return loss, [gradients[place] for place in self.where]


def _own(cell: nn.Cell, trained: Collection[str]) -> list[Parameter]:
    """What is trained of a cell's parameters."""
    return [parameter for parameter in cell.get_parameters() if parameter.name in trained]


class _Begin(nn.Cell):
    """The embedding."""

    def __init__(self, model: SparkForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.model = model.transformer

    def construct(self, ids: Any, key: Any) -> Any:
        return self.model.transformer.before(self.model.embed(ids, key))


class _Layer(nn.Cell):
    """One block, of which only the rows are asked."""

    def __init__(self, block: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.block = block

    def construct(self, x: Any, ids: Any, cos: Any, sin: Any, mask: Any, key: Any) -> Any:
        y, _, _ = self.block(x, ids.shape[0], cos, sin, mask, key)
        return y


class _End(nn.Cell):
    """The last norm, the logits and the loss."""

    def __init__(self, model: SparkForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.decoder = model.transformer.transformer
        self.loss = TotalLoss(model.transformer, model.setup.mesh)

    def construct(self, x: Any, targets: Any, mask: Any, factor: Any) -> Any:
        return self.loss.of_hidden(self.decoder.after(x), targets, mask) * factor
