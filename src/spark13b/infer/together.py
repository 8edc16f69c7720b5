"""One engine over processes that share a model: one leads, the others do to their part what it does to its own.

The leader has the engine, the prompts and the choices. Each call of its decoders goes to the followers first, a line of
JSON over a Unix socket; the collectives inside the graphs bring the parts together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np

from spark13b.errors import JobError
from spark13b.infer.decoder import Decoder
from spark13b.model.causal_lm import SparkForCausalLM

_PATIENCE = 600.0  # seconds that processes may differ in loading their weights
_SIGN = 10.0  # seconds between signs of life of a follower that is told nothing


class Followers:
    """The leader's side. Close it, or use it as a context manager, and the followers end."""

    def __init__(self, socket: Path, count: int, live: Callable[[], None] = lambda: None) -> None:
        """Wait for `count` followers at `socket`; `live` is called with each command."""
        self._live = live
        with Listener(str(socket), "AF_UNIX", backlog=count) as listener:
            self._connections: list[Connection] = [listener.accept() for _ in range(count)]

    def tell(self, *command: Any) -> None:
        """Let all of them do it, too."""
        self._live()
        line = json.dumps(command).encode()
        for connection in self._connections:
            connection.send_bytes(line)

    def __enter__(self) -> Followers:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in self._connections:
            connection.close()

    def decoder(self, model: SparkForCausalLM, slots: int, seats: int, chunk: int) -> Decoder:
        """A decoder that takes the followers along; `Engine` makes its decoders with this."""
        return _LeadingDecoder(self, model, slots, seats, chunk)


class _LeadingDecoder(Decoder):
    def __init__(self, followers: Followers, model: SparkForCausalLM, slots: int, seats: int, chunk: int) -> None:
        super().__init__(model, slots, seats, chunk)
        self._followers = followers

    def read(self, ids: Sequence[int], start: int) -> np.ndarray:
        self._tell("read", list(map(int, ids)), start)
        return super().read(ids, start)

    def step(self, seats: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        self._tell("step", list(seats), list(tokens), list(positions))
        return super().step(seats, tokens, positions)

    def copy(self, source: int, target: int) -> None:
        self._tell("copy", source, target)
        super().copy(source, target)

    def _tell(self, name: str, *inputs: Any) -> None:
        self._followers.tell(self.slots, self.seats, self.chunk, name, inputs)


def follow(model: SparkForCausalLM, socket: Path, live: Callable[[], None] = lambda: None) -> None:
    """Do what the leader at `socket` does, until it closes the connection; `live` is called at least every 10 s."""
    decoders: dict[int, Decoder] = {}
    with _connected(socket) as connection:
        while True:
            while not connection.poll(_SIGN):
                live()
            live()
            try:
                slots, seats, chunk, name, inputs = json.loads(connection.recv_bytes())
            except (EOFError, ConnectionError):
                return
            if slots not in decoders:
                decoders[slots] = Decoder(model, slots, seats, chunk)
            getattr(decoders[slots], name)(*inputs)


def _connected(socket: Path) -> Connection:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return Client(str(socket), "AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > until:
                raise JobError(f"process 0 did not open {socket} within {_PATIENCE:.0f} s") from None
            time.sleep(0.05)
