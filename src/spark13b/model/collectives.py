"""All that processes say to each other inside a graph, with the gradients that a model divided over them needs.

`entrance` and `exit_of` stand around every part of a block that is divided (Shoeybi et al. 2019, Megatron-LM, section
3; with sequence parallelism Korthikanti et al. 2022, section 4.2.2): what the entrance does forward, the exit does
backward, and the other way round.

MindSpore's CPU backend has AllReduce with sums alone; a reduction and a gathering are put together from it here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from spark13b.model.device import device
from spark13b.model.mesh import Group, Mesh


def entrance(mesh: Mesh) -> nn.Cell:
    """Rows (N, C) of the residual stream -> the rows that every process of the model group computes with."""
    if mesh.model.size == 1:
        return Same()
    return gather_rows(mesh.model) if mesh.sequence_parallel else sum_backward(mesh.model)


def exit_of(mesh: Mesh) -> nn.Cell:
    """Each process's summand (N, C) -> the sum, or this process's rows of it."""
    if mesh.model.size == 1:
        return Same()
    return scatter_rows(mesh.model) if mesh.sequence_parallel else sum_forward(mesh.model)


class Same(nn.Cell):
    """Nothing to say: one process."""

    def construct(self, x: Any) -> Any:
        return x


class Pair(nn.Cell):
    """What is done to x, and what is done to its gradient."""

    def __init__(self, to_x: Any, to_gradient: Any) -> None:
        super().__init__()
        self.to_x, self.to_gradient = to_x, to_gradient

    def construct(self, x: Any) -> Any:
        return self.to_x(x)

    def bprop(self, x: Any, out: Any, dout: Any) -> tuple[Any]:
        return (self.to_gradient(dout),)


def sum_forward(group: Group) -> Pair:
    """The sum over the group; its gradient is every summand's."""
    return Pair(_sum(group), Same())


def sum_backward(group: Group) -> Pair:
    """The same everywhere; its gradients, one a process, are summed."""
    return Pair(Same(), _sum(group))


def gather_rows(group: Group) -> Pair:
    """The rows of all processes, (N, ...) -> (N * size, ...); gradients are summed and handed back."""
    return Pair(all_gather(group), reduce_scatter(group))


def scatter_rows(group: Group) -> Pair:
    """The sum over the group, of which each process takes its rows, (N, ...) -> (N / size, ...)."""
    return Pair(reduce_scatter(group), all_gather(group))


def take_rows(group: Group) -> Pair:
    """This process's rows of what all have, (N, ...) -> (N / size, ...); gradients are put together."""
    return Pair(_OwnRows(group), all_gather(group))


def join_rows(group: Group) -> Pair:
    """What `take_rows` took, put together; each process has the gradient of the whole and takes its rows of it."""
    return Pair(all_gather(group), _OwnRows(group))


def all_reduce(group: Group) -> Any:
    """x -> the sum over the group, without a gradient."""
    return Same() if group.size == 1 else _sum(group)


def all_gather(group: Group) -> Any:
    """(N, ...) -> (N * size, ...), without a gradient."""
    if group.size == 1:
        return Same()
    return _GatherBySum(group) if device() == "cpu" else ops.AllGather(group=group.name)


def reduce_scatter(group: Group) -> Any:
    """(N, ...) -> this process's rows of the sum, (N / size, ...), without a gradient."""
    if group.size == 1:
        return Same()
    return _ScatterBySum(group) if device() == "cpu" else ops.ReduceScatter(ops.ReduceOp.SUM, group=group.name)


def any_of(mesh: Mesh) -> Callable[[bool], bool]:
    """A function that every process calls with its own answer and that tells all whether one said yes.

    It returns when all have called it: processes that must do the same thing at the same step ask it, and it is what
    they wait with for each other.
    """
    if mesh.world.size == 1:
        return lambda own: own
    together = _Sum(mesh.world)
    return lambda own: bool(together(Tensor(np.array([own], np.float32))).asnumpy()[0] > 0)


def total_over(group: Group) -> Callable[[np.ndarray], np.ndarray]:
    """A function: numbers (float32, one dimension) of every process of the group -> their sums."""
    if group.size == 1:
        return lambda own: own
    together = _Sum(group)
    return lambda own: np.asarray(together(Tensor(own.astype(np.float32))).asnumpy())


class _Sum(nn.Cell):
    def __init__(self, group: Group) -> None:
        super().__init__()
        self.sum = _sum(group)

    def construct(self, x: Any) -> Any:
        return self.sum(x)


class LargestOf(nn.Cell):
    """x -> the largest over the group at each place; no gradient."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.on_cpu = device() == "cpu"
        self.gather = all_gather(group)
        self.largest = ops.AllReduce(ops.ReduceOp.MAX, group=group.name) if not self.on_cpu else Same()

    def construct(self, x: Any) -> Any:
        x = ops.stop_gradient(x)
        if self.on_cpu:
            return ops.stop_gradient(self.gather(x.reshape((1, -1))).max(0).reshape(x.shape))
        return ops.stop_gradient(self.largest(x))


class _GatherBySum(nn.Cell):
    """Each process puts its rows between zeros, and the sum has them all."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.before, self.after = group.index, group.size - 1 - group.index
        self.sum = _sum(group)
        self.zeros, self.concat = ops.Zeros(), ops.Concat(axis=0)

    def construct(self, x: Any) -> Any:
        parts: tuple[Any, ...] = (x,)
        if self.before:
            parts = (self.zeros((self.before * x.shape[0], *x.shape[1:]), x.dtype), *parts)
        if self.after:
            parts = (*parts, self.zeros((self.after * x.shape[0], *x.shape[1:]), x.dtype))
        return self.sum(self.concat(parts))


class _ScatterBySum(nn.Cell):
    def __init__(self, group: Group) -> None:
        super().__init__()
        self.sum, self.own = _sum(group), _OwnRows(group)

    def construct(self, x: Any) -> Any:
        return self.own(self.sum(x))


class _OwnRows(nn.Cell):
    """(N, ...) -> this process's rows, (N / size, ...)"""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.index, self.size = group.index, group.size

    def construct(self, x: Any) -> Any:
        own = x.shape[0] // self.size
        return x[self.index * own : (self.index + 1) * own]


def _sum(group: Group) -> Any:
    return ops.AllReduce(ops.ReduceOp.SUM, group=group.name)
