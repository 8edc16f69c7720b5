"""A server that speaks the Spark web API over real WebSockets and checks what it is sent, with faults on order."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

APP_ID, KEY, SECRET = "a1b2c3d4", "0123456789abcdef0123456789abcdef", "c2VjcmV0LW9mLXRoZS1jdXN0b21lcg"
# what to do with a question: "answer", "busy", "hang", "drop" in the middle, "refuse", or a code
Plan = Callable[[str, int], "str | int"]


class SparkServer:
    """Answers 答:QUESTION in pieces. `asked` counts questions, `wrong` lists requests that are not as documented."""

    def __init__(self, plan: Plan, *, seconds: float = 0) -> None:
        self.plan, self.seconds = plan, seconds
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.times: list[float] = []
        self.wrong: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.url = ""
        self._lock = threading.Lock()

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """The handshake: a signature by the customer's secret over host, date and path, not older than 300 s."""
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, strict_parsing=True).items()}
        authorization = base64.b64decode(query["authorization"]).decode()
        found = re.fullmatch(
            'api_key="(.*)", algorithm="hmac-sha256", headers="host date request-line", signature="(.*)"', authorization
        )
        signed = f"host: {query['host']}\ndate: {query['date']}\nGET {parts.path} HTTP/1.1"
        proof = base64.b64encode(hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest()).decode()
        age = abs(time.time() - parsedate_to_datetime(query["date"]).timestamp())
        if query["host"] != request.headers["Host"] or not query["date"].endswith(" GMT"):
            self.wrong.append(request.path)
        if found is None or (found[1], found[2]) != (KEY, proof) or age > 300:
            return connection.respond(HTTPStatus.UNAUTHORIZED, '{"message":"HMAC signature does not match"}\n')
        return None

    def talk(self, connection: ServerConnection) -> None:
        """One question."""
        request = json.loads(connection.recv())
        self.check(request, connection)
        question = request["payload"]["message"]["text"][-1]["content"]
        with self._lock:
            self.times.append(time.monotonic())
            self.asked[question] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            deed = self.plan(question, self.asked[question])
        try:
            time.sleep(self.seconds)
            self.act(connection, question, deed)
        finally:
            with self._lock:
                self.at_once -= 1

    def act(self, connection: ServerConnection, question: str, deed: str | int) -> None:
        """Answer, or fail in the way that is ordered."""
        if deed == "hang":
            with suppress(ConnectionClosed, TimeoutError):
                connection.recv(200)  # until the client leaves
        elif deed == "drop":
            connection.send(frame(question[:2], 0))
            connection.socket.shutdown(2)
        elif isinstance(deed, int):
            connection.send(json.dumps({"header": {"code": deed, "message": "no", "sid": "s", "status": 2}}))
        else:
            answer = f"答:{question[-60:]}"
            connection.send(frame(answer[:5], 0))
            connection.send(frame(answer[5:9], 1))
            connection.send(frame(answer[9:], 2, {"text": {"completion_tokens": 7, "total_tokens": 20}}))

    def check(self, request: dict[str, Any], connection: ServerConnection) -> None:
        """Whether a request has the documented shape."""
        self.requests.append(request)
        assert connection.request is not None
        path = urlsplit(connection.request.path).path
        chat = request["parameter"]["chat"]
        fine = (
            set(request) == {"header", "parameter", "payload"}
            and request["header"]["app_id"] == APP_ID
            and 0 < len(request["header"]["uid"]) <= 32
            and {"/v3.5/chat": "generalv3.5", "/v1.1/chat": "lite"}[path] == chat["domain"]
            and 0 < chat["temperature"] <= 1
            and 1 <= chat["top_k"] <= 6
            and chat["max_tokens"] >= 1
            and all(set(text) == {"role", "content"} for text in request["payload"]["message"]["text"])
        )
        if not fine:
            self.wrong.append(json.dumps(request))


def frame(content: str, status: int, usage: dict[str, Any] | None = None) -> str:
    """A frame of an answer; with a field that is not documented."""
    choices = {"status": status, "seq": status, "text": [{"content": content, "role": "assistant", "index": 0}]}
    payload = {"choices": choices, "plugins": []} | ({"usage": usage} if usage else {})
    header = {"code": 0, "message": "Success", "sid": "cht0@1", "status": status}
    return json.dumps({"header": header, "payload": payload})


@contextmanager
def running(
    plan: Plan = lambda question, time: "answer", *, seconds: float = 0, tls: ssl.SSLContext | None = None
) -> Iterator[SparkServer]:
    """A server on a free port, in a thread."""
    silent = logging.Logger("server", logging.CRITICAL + 1)
    api = SparkServer(plan, seconds=seconds)
    server: Server = serve(
        api.talk, "127.0.0.1", 0, ssl=tls, process_request=api.admit, ping_interval=None, close_timeout=1, logger=silent
    )
    api.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{server.socket.getsockname()[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
