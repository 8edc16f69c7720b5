"""Which processes share the work, and which part is this one's. `join` is called once, before the model is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from spark13b.errors import InputError
from spark13b.model.names import model_axis

if TYPE_CHECKING:
    from spark13b.config.sections import ParallelConfig


@dataclass(frozen=True)
class Group:
    """Processes that share something: MindSpore's name of the group, how many they are, this process's place."""

    name: str = ""
    size: int = 1
    index: int = 0

    def part(self, size: int) -> slice:
        """This process's share of `size` equal things."""
        own = size // self.size
        return slice(self.index * own, (self.index + 1) * own)


@dataclass(frozen=True)
class Mesh:
    """Rank r is number r % model_parallel of data-parallel group r // model_parallel, as in `ckpt.layout`.

    `model`: the processes that share one copy of the model; `data`: those that hold the same part of it and see
    different rows. With `sequence_parallel` the residual stream is divided over `model`, too.
    """

    model: Group = Group()
    data: Group = Group()
    world: Group = Group()
    sequence_parallel: bool = False

    def part_of(self, name: str, array: np.ndarray) -> np.ndarray:
        """What this process holds of a whole parameter, a view; works for adapters, too."""
        axis = model_axis(name, array.ndim) if self.model.size > 1 else None
        if axis is None:
            return array
        index = [slice(None)] * array.ndim
        index[axis] = self.model.part(array.shape[axis])
        return array[tuple(index)]

    def part_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of `part_of` an array of `shape`."""
        axis = model_axis(name, len(shape)) if self.model.size > 1 else None
        return tuple(size // self.model.size if at == axis else size for at, size in enumerate(shape))


ALONE = Mesh()


def processes() -> int:
    """How many processes this run has: msrun and rank tables tell it in the environment; 1 without them."""
    if os.environ.get("MS_ROLE") == "MS_WORKER":
        return int(os.environ["MS_WORKER_NUM"])
    return int(os.environ.get("RANK_SIZE", "1")) if os.environ.get("RANK_TABLE_FILE") else 1


def check_processes(parallel: ParallelConfig) -> None:
    """Raise InputError when this run has another number of processes than `parallel` says."""
    found = processes()
    if found != parallel.devices:
        alone = "--set machine.devices=1 --set parallel.data_parallel=1 --set parallel.model_parallel=1"
        raise InputError(
            f"the preset is made for {parallel.devices} devices, and this command runs "
            f"{f'{found} processes' if found > 1 else 'one process'}",
            where="parallel",
            fix=alone if found == 1 else f"start {parallel.devices} with --nproc",
        )


def join(parallel: ParallelConfig) -> Mesh:
    """Meet the other processes of the run. Raises InputError when they are not as many as `parallel` says."""
    check_processes(parallel)
    if parallel.devices == 1:
        return ALONE
    world = meet()
    row, column = divmod(world.index, parallel.model_parallel)
    model = _group(world, "model", [row * parallel.model_parallel + i for i in range(parallel.model_parallel)])
    data = _group(world, "data", [i * parallel.model_parallel + column for i in range(parallel.data_parallel)])
    return Mesh(model, data, world, parallel.sequence_parallel and parallel.model_parallel > 1)


@cache
def meet() -> Group:
    """Wait for all processes of the run, once. msrun's scheduler serves them here, and ends when they have gone."""
    from mindspore import communication

    from spark13b.model.device import device

    device()  # its context comes first
    communication.init()
    return Group(communication.GlobalComm.WORLD_COMM_GROUP, communication.get_group_size(), communication.get_rank())


def _group(world: Group, what: str, ranks: list[int]) -> Group:
    """The group of these ranks, of which this process is one."""
    if len(ranks) == 1:
        return Group()
    if len(ranks) == world.size:
        return world
    name = _made(f"spark13b-{what}-{'-'.join(map(str, ranks))}", tuple(ranks))
    return Group(name, len(ranks), ranks.index(world.index))


@cache
def _made(name: str, ranks: tuple[int, ...]) -> str:
    """The name of a group, which MindSpore makes but once."""
    from mindspore import communication

    communication.create_group(name, list(ranks))
    return name
