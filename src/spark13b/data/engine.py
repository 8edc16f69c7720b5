"""Many processes that encode blocks: here, or on a Ray cluster. The results come in the order of the blocks."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from spark13b.data.blocks import Block
from spark13b.data.encoding import Encoded, Encoder, Recipe
from spark13b.errors import InputError, JobError

EngineName = Literal["local", "ray"]
Encode = Callable[[Iterable[Block]], Iterator[Encoded]]
Handle = TypeVar("Handle")

_SECONDS = 10.0  # that a cluster's first machine has to answer, and a thread to end
_START = "start one: ray start --head, then --ray-address auto"
_AHEAD = 2  # blocks on their way beside those that are encoded, a process


@contextmanager
def encoding(
    recipe: Recipe, workers: int, engine: EngineName = "local", address: str | None = None
) -> Iterator[Encode]:
    """Yield a function that encodes blocks with `workers` processes; its results come in the order of the blocks.

    The blocks are taken as they are needed: no more than a few a process are in memory. `address` is that of a Ray
    cluster, None one that begins and ends here. Raises JobError when a process dies.
    """
    if engine == "ray":
        with _ray(recipe, workers, address) as encode:
            yield encode
    elif workers == 1:
        encoder = Encoder(recipe)
        yield lambda blocks: map(encoder.encode, blocks)
    else:
        with _local(recipe, workers) as encode:
            yield encode


@contextmanager
def _local(recipe: Recipe, workers: int) -> Iterator[Encode]:
    context = multiprocessing.get_context("forkserver")  # nothing of this process, which may hold MindSpore, is copied
    pool = ProcessPoolExecutor(workers, context, _begin, (recipe,))
    done = False

    def encode(blocks: Iterable[Block]) -> Iterator[Encoded]:
        try:
            yield from _in_order(blocks, workers, lambda block: pool.submit(_encode, block), _result)
        except BrokenProcessPool:
            raise JobError(
                "a process that encodes text was killed, most likely because memory ran out",
                fix="use fewer --workers; the same command goes on from the last shard",
            ) from None

    try:
        yield encode
        done = True
    finally:
        processes = list((pool._processes or {}).values())
        manager: Any = pool._executor_manager_thread
        pool.shutdown(wait=done, cancel_futures=True)
        if not done:
            for process in processes:
                process.kill()
            if manager is not None:  # or Python, at its end, writes to a pipe that this thread is closing
                manager.join(_SECONDS)


def _result(future: Future[Encoded]) -> Encoded:
    return future.result()


_encoder: Encoder | None = None  # of this process


def _begin(recipe: Recipe) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one tells
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _encoder = Encoder(recipe)
    gc.disable()  # arrays and strings have no cycles; looking for some takes a tenth of the time


def _end_with(parent: Any) -> None:
    """End this process when its parent is gone, however it ended."""
    parent.join()
    os._exit(1)


def _encode(block: Block) -> Encoded:
    assert _encoder is not None
    return _encoder.encode(block)


@contextmanager
def _ray(recipe: Recipe, workers: int, address: str | None) -> Iterator[Encode]:
    ray = _imported()
    if ray.is_initialized():
        raise JobError("this process has joined a Ray cluster already", fix="use --engine local")
    _check_listened(address)
    try:
        ray.init(
            address=address, log_to_driver=False, logging_level="ERROR", **({} if address else {"num_cpus": workers})
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers: {str(error).splitlines()[0]}",
            where=address or "--engine ray",
            fix=_START,
        ) from None
    try:
        encoder = ray.remote(num_cpus=1)(Encoder)
        actors = deque(encoder.remote(recipe) for _ in range(workers))

        def submit(block: Block) -> Any:
            actors.rotate(-1)
            return actors[0].encode.remote(block)

        def encode(blocks: Iterable[Block]) -> Iterator[Encoded]:
            try:
                yield from _in_order(blocks, workers, submit, ray.get)
            except ray.exceptions.RayError as error:
                raise JobError(
                    f"Ray cannot go on: {str(error).strip().splitlines()[0]}",
                    fix="look at 'ray status'; the same command goes on from the last shard",
                ) from None

        yield encode
    finally:
        ray.shutdown()


def _check_listened(address: str | None) -> None:
    """Raise InputError when nothing listens at HOST:PORT: Ray would wait for it without an end."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise InputError(f"no Ray cluster answers: {what}", where=address, fix=_START) from None


def _imported() -> Any:
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
    except ImportError:
        raise InputError("--engine ray needs the package ray", fix="pip install 'spark13b[ray]'") from None
    return ray


def _in_order(
    blocks: Iterable[Block], workers: int, submit: Callable[[Block], Handle], result: Callable[[Handle], Encoded]
) -> Iterator[Encoded]:
    """Keep all workers busy, and little more than that in memory."""
    running: deque[Handle] = deque()
    for block in blocks:
        running.append(submit(block))
        if len(running) >= workers * (1 + _AHEAD):
            yield result(running.popleft())
    while running:
        yield result(running.popleft())
