"""An OpenAI-style endpoint as teacher, against a real HTTP server that streams."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from spark13b.persona.openai_teacher import OpenAITeacher
from spark13b.persona.teacher import Drawing, NoAnswer, StopAsking, TeacherError, TryAgain

KEY = "sk-0123456789"


def event(content: str, reason: str | None = None) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': content}, 'finish_reason': reason}]})}\n\n"


@contextmanager
def running(status: int, body: str, headers: dict[str, str] | None = None, wait: float = 0) -> Iterator[Any]:
    """A server with one answer; `requests` is what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            server.requests.append((self.path, self.headers["Authorization"], json.loads(self.rfile.read(length))))
            closing.wait(wait)
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *words: Any) -> None:
            pass

    class WithRequests(ThreadingHTTPServer):
        requests: list[Any] = []  # noqa: RUF012  # one server a class

    closing = threading.Event()
    server = WithRequests(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def ask(server: Any, key: str | None = KEY, timeout: float = 100) -> list[str]:
    async def collect() -> list[str]:
        address = f"http://127.0.0.1:{server.server_port}/v1/"
        teacher = OpenAITeacher(address, "tiny", key, Drawing(0.2, 9), timeout=timeout)
        async with aclosing(teacher.ask([{"role": "user", "content": "你好"}])) as answer:
            return [piece async for piece in answer]

    return asyncio.run(collect())


def failure(status: int, body: str, headers: dict[str, str] | None = None) -> TeacherError:
    with running(status, body, headers) as server, pytest.raises(TeacherError) as raised:
        ask(server)
    return raised.value


def test_an_answer_comes_in_pieces_and_the_request_is_as_documented(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    stream = ": a comment\n\n" + event("我叫") + event("小雅") + event("", "stop") + "data: [DONE]\n\n"
    with running(200, stream) as server:
        assert ask(server) == ["我叫", "小雅"]
        ask(server, key=None)
    request = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "你好"}],
        "temperature": 0.2,
        "max_tokens": 9,
        "stream": True,
    }
    assert server.requests == [
        ("/v1/chat/completions", f"Bearer {KEY}", request),
        ("/v1/chat/completions", None, request),
    ]
    assert caplog.records and KEY not in caplog.text


@pytest.mark.parametrize(
    ("body", "kind", "what"),
    [
        (event("我叫"), TryAgain, "ended before the answer"),
        (event("我叫") + "data: [DONE]\n\n", TryAgain, "ended before the answer"),
        ("data: oops\n\n", TryAgain, "not one of OpenAI's"),
        ('data: {"error": {"message": "worker died"}}\n\n', TryAgain, "worker died"),
        (event("我叫", "length"), NoAnswer, "too long: cut off, at 9 tokens"),
        (event("", "content_filter"), NoAnswer, "refused for its content"),
    ],
)
def test_a_stream_without_a_whole_answer_is_none(body: str, kind: type[TeacherError], what: str) -> None:
    error = failure(200, body)
    assert type(error) is kind
    assert what in str(error)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, '{"error": {"message": "slow down"}}', TryAgain),
        (503, "busy", TryAgain),
        (429, '{"error": {"message": "pay", "code": "insufficient_quota"}}', StopAsking),
        (401, '{"error": {"message": "bad key"}}', StopAsking),
        (404, '{"error": {"message": "no such model"}}', StopAsking),
        (400, '{"error": {"message": "too long"}}', NoAnswer),
    ],
)
def test_a_status_says_whether_to_ask_again_to_stop_or_to_leave_the_line(
    status: int, body: str, kind: type[TeacherError]
) -> None:
    assert type(failure(status, body)) is kind


def test_the_server_says_when_to_come_back() -> None:
    error = failure(429, "busy", {"Retry-After": "7"})
    assert isinstance(error, TryAgain)
    assert error.after == 7


def test_silence_and_a_dead_port_are_worth_another_try() -> None:
    with running(200, event("a", "stop"), wait=200) as server, pytest.raises(TryAgain, match=r"silence for 0.5 s"):
        ask(server, timeout=0.5)
    with pytest.raises(TryAgain, match="cannot be reached"):
        ask(server)
