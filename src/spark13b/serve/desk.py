"""Between the server's event loop and the engine, which belongs to another thread: requests in, pieces out."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from spark13b.errors import JobError
from spark13b.infer.engine import Engine
from spark13b.infer.requests import Generation, Piece, Request

_IDLE = 0.5  # seconds between looks at the stop sign when nothing is asked


class Busy(Exception):
    """So many requests wait already that no more are taken."""


class Broken(Exception):
    """Nothing is answered any more: the engine has failed, or the server is ending. Its text says which."""


@dataclass(eq=False)
class Ticket:
    """One request at the desk: its pieces come through `pieces`, the failure of the engine as an exception."""

    request: Request
    loop: asyncio.AbstractEventLoop
    incoming: asyncio.Queue[Piece | Exception | None] = field(default_factory=asyncio.Queue)
    generation: Generation | None = None
    ended: bool = False

    def put(self, item: Piece | Exception | None) -> None:
        """Hand something over, from the engine's thread; None is the end."""
        try:
            self.loop.call_soon_threadsafe(self.incoming.put_nowait, item)
        except RuntimeError:  # the server has gone
            return


class Desk:
    """Takes requests in the event loop (`take`, `pieces`, `release`), serves them in the thread that calls `serve`.

    At most `most` requests are open at a time, running or waiting.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self.engine, self.most = engine, most
        self._commands: queue.SimpleQueue[tuple[str, Ticket]] = queue.SimpleQueue()
        self._open: dict[Ticket, None] = {}
        self._tickets: dict[int, Ticket] = {}  # the engine's side: by number of the generation
        self._lock = threading.Lock()
        self.failure: Exception | None = None
        self._why = "the engine has failed"
        self.running = self.waiting = 0  # of the engine, as of its last step
        self.on_end: Callable[[Generation], None] = lambda generation: None  # told of every answer, in `serve`'s thread

    @property
    def open(self) -> int:
        """Requests that run or wait."""
        return len(self._open)

    def check(self, request: Request) -> None:
        """Raise InputError as `Engine.check` does."""
        self.engine.check(request)

    def take(self, requests: Sequence[Request]) -> list[Ticket]:
        """Take requests, all or none; each must be given to `release` in the end.

        Raises Busy when they are too many, Broken when the engine has failed.
        """
        tickets = [Ticket(request, asyncio.get_running_loop()) for request in requests]
        with self._lock:
            if self.failure is not None:
                raise Broken(self._why)
            if self.open + len(tickets) > self.most:
                raise Busy
            self._open.update(dict.fromkeys(tickets))
        for ticket in tickets:
            self._commands.put(("add", ticket))
        return tickets

    async def pieces(self, ticket: Ticket) -> AsyncGenerator[Piece]:
        """The pieces of an answer as they come. Raises Broken."""
        while not ticket.ended:
            item = await ticket.incoming.get()
            if isinstance(item, Exception):
                ticket.ended = True
                raise Broken(self._why) from item
            if item is None:  # not `generation.done`: that is so already while earlier pieces are on their way
                ticket.ended = True
                return
            yield item

    def release(self, tickets: Iterable[Ticket]) -> None:
        """Forget requests; an answer that has not ended is cancelled, so that its seat is free."""
        for ticket in tickets:
            with self._lock:
                known = ticket in self._open
                self._open.pop(ticket, None)
            if known and not ticket.ended:
                self._commands.put(("cancel", ticket))

    def serve(self, stopped: Callable[[], bool], live: Callable[[], None] = lambda: None) -> None:
        """Serve until `stopped()`; what is open then ends as Broken. `live` is called again and again.

        Raises JobError when the engine fails.
        """
        try:
            while not stopped():
                live()
                self._take(wait=not self.engine.busy)
                if self.engine.busy:
                    for piece in self.engine.step():
                        self._deliver(piece)
                self.running, self.waiting = self.engine.running, self.engine.waiting
        except Exception as error:
            self._fail(error)
            raise JobError(f"the engine failed: {error}", fix="start the server again; --debug shows where") from error
        self._why = "the server is being stopped"
        self._fail(InterruptedError(self._why))

    def _take(self, wait: bool) -> None:
        """Do what the event loop asks for."""
        try:
            while True:
                name, ticket = self._commands.get(timeout=_IDLE) if wait else self._commands.get_nowait()
                wait = False
                if name == "add":
                    ticket.generation = self.engine.add(ticket.request)
                    self._tickets[ticket.generation.number] = ticket
                elif ticket.generation is not None and ticket.generation.number in self._tickets:
                    del self._tickets[ticket.generation.number]
                    self.engine.cancel(ticket.generation)
                    self.on_end(ticket.generation)
        except queue.Empty:
            return

    def _deliver(self, piece: Piece) -> None:
        ticket = self._tickets.get(piece.generation.number)
        if ticket is None:
            return
        ticket.put(piece)
        if piece.generation.done:
            del self._tickets[piece.generation.number]
            self.on_end(piece.generation)
            ticket.put(None)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self.failure = error
            tickets = list(self._open)
        for ticket in tickets:
            ticket.put(error)
