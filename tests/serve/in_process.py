"""The web server in this process, over an engine of a few lines: no model, no start of a process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from infer.small_run import TOKENIZER
from spark13b.config.sections import GenerationConfig
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.infer.requests import Generation, Piece, Request, Token
from spark13b.serve.app import Settings, make_app
from spark13b.serve.desk import Desk
from spark13b.serve.server import address, listen, run


@dataclass
class Session:
    """What the server needs of one."""

    tokenizer: SparkTokenizer = field(default_factory=lambda: SparkTokenizer.load(TOKENIZER))
    options: GenerationConfig = field(default_factory=GenerationConfig)


class EndlessEngine:
    """Answers `a`, `a`, `a` to everybody, without an end."""

    def __init__(self) -> None:
        self.waiting, self.running = 0, 0
        self.generations: list[Generation] = []

    @property
    def busy(self) -> bool:
        return any(not one.done for one in self.generations)

    def check(self, request: Request) -> None: ...

    def add(self, request: Request) -> Generation:
        self.generations.append(Generation(request, len(self.generations)))
        return self.generations[-1]

    def cancel(self, generation: Generation) -> None:
        generation.finish_reason = "cancelled"

    def step(self) -> list[Piece]:
        time.sleep(0.01)
        growing = [one for one in self.generations if not one.done]
        for one in growing:
            one.first_token_at = one.first_token_at or time.monotonic()
            one.tokens.append(Token(300))
        return [Piece(one, "a", (one.tokens[-1],)) for one in growing]


def wait_until(true: Callable[[], object]) -> None:
    """Raise AssertionError only when something hangs."""
    until = time.monotonic() + 100
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def stop() -> None:
    """What Ctrl-C does to the server."""
    os.kill(os.getpid(), signal.SIGINT)


def served(
    client: Callable[[str], None],
    engine: Any,
    settings: Settings | None = None,
    grace: float = 0.2,
    host: str = "127.0.0.1",
) -> float:
    """Serve in this thread while `client(url)` asks in another, until both have ended; seconds from the first `stop`.

    The server is stopped when the client has ended, unless the client did that.
    """
    desk = Desk(engine, 4)
    session: Any = Session()
    where = listen(host, 0)
    failures: list[BaseException] = []
    stopped: list[float] = []

    def ask() -> None:
        try:
            client(address(where))
        except BaseException as error:
            failures.append(error)
        stop()

    asking = threading.Thread(target=ask)

    def begin() -> None:
        inner = signal.getsignal(signal.SIGINT)
        assert callable(inner)

        def noted(number: int, frame: Any) -> None:
            stopped.append(time.monotonic())
            inner(number, frame)

        signal.signal(signal.SIGINT, noted)
        asking.start()

    before = signal.getsignal(signal.SIGINT)
    try:
        run(make_app(session, desk, settings or Settings()), desk, where, grace, begin)
        ended = time.monotonic()
        signal.signal(signal.SIGINT, lambda *_: None)  # the client's `stop` may be still to come
        asking.join(100)
    finally:
        signal.signal(signal.SIGINT, before)
    if failures:
        raise failures[0]
    assert desk.open == 0
    return ended - stopped[0]
