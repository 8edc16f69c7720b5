"""A server whose engine fails: running requests get an error, the command ends with JobError."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import requests

from serve.in_process import Session
from spark13b.errors import JobError
from spark13b.infer.requests import Generation, Piece, Request, Token
from spark13b.serve.app import Settings, make_app
from spark13b.serve.desk import Desk
from spark13b.serve.server import listen, run


class FailingEngine:
    """Takes requests, tells one piece of each, then fails: what an engine out of memory does."""

    def __init__(self) -> None:
        self.waiting, self.running, self.steps = 0, 0, 0
        self._generations: list[Generation] = []

    @property
    def busy(self) -> bool:
        return bool(self._generations)

    def check(self, request: Request) -> None: ...

    def add(self, request: Request) -> Generation:
        self._generations.append(Generation(request, len(self._generations)))
        return self._generations[-1]

    def cancel(self, generation: Generation) -> None: ...

    def step(self) -> list[Piece]:
        self.steps += 1
        if self.steps > 1:
            raise MemoryError("no room for the cache")
        return [Piece(one, "a", (Token(300),)) for one in self._generations]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_engine_ends_requests_with_an_error_and_the_command_with_exit_code_1(
    stream: bool,
) -> None:
    desk = Desk(FailingEngine(), 4)  # type: ignore[arg-type]
    session: Any = Session()
    where = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{where.getsockname()[1]}"
    answers: list[requests.Response] = []
    body = {"messages": [{"role": "user", "content": "x"}], "stream": stream}
    asking = threading.Thread(
        target=lambda: answers.append(requests.post(f"{url}/v1/chat/completions", json=body, timeout=100))
    )
    with pytest.raises(JobError, match="the engine failed: no room for the cache"):
        run(make_app(session, desk, Settings()), desk, where, 5.0, asking.start)
    asking.join(100)
    (answer,) = answers
    assert answer.status_code == (200 if stream else 503)
    assert "the engine has failed" in answer.text
    assert "server_error" in answer.text
    assert "[DONE]" not in answer.text
    assert desk.open == 0
