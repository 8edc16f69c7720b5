"""What stands before the routes: keys, the size of bodies, the access log."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException

from spark13b.serve.replies import problem

MAX_BODY = 4 << 20
_OPEN = ("/health", "/", "/favicon.ico")  # need no key: they tell nothing

Asgi = Callable[..., Any]


class TooLarge(HTTPException):
    """A body is longer than a server takes."""

    def __init__(self) -> None:
        super().__init__(413, f"the body is larger than {MAX_BODY >> 20} MiB")


class Guard:
    """ASGI middleware: refuses a wrong key (401) and a large body (413), logs and counts each request."""

    def __init__(
        self, app: Asgi, keys: Sequence[str], log: Callable[[str], None], count: Callable[[str, int], None]
    ) -> None:
        self._app, self._keys, self._log, self._count = app, [key.encode() for key in keys], log, count

    async def __call__(self, scope: Any, receive: Asgi, send: Asgi) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, size = time.monotonic(), 0, 0

        async def counted() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise TooLarge
            return message

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        try:
            if not self._allowed(scope, headers):
                text = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
                await _refuse(watched, 401, problem(text, "authentication_error", code="invalid_api_key"))
            elif length.isdigit() and int(length) > MAX_BODY:
                raise TooLarge
            else:
                await self._app(scope, counted, watched)
        except TooLarge as error:
            await _refuse(watched, 413, problem(error.detail, "invalid_request_error"))
        finally:
            route = getattr(scope.get("route"), "path", None) or "other"
            self._count(route, status)
            client = (scope.get("client") or ("-", 0))[0]
            path = scope["path"].encode("unicode_escape").decode()
            self._log(f'{client} "{scope["method"]} {path}" {status or "left"} {time.monotonic() - began:.3f}s')

    def _allowed(self, scope: Any, headers: dict[bytes, bytes]) -> bool:
        if not self._keys or scope["path"] in _OPEN or scope["method"] == "OPTIONS":
            return True
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        # every key is compared, so that time does not tell which one was near
        right = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        return kind.lower() == b"bearer" and any(right)


async def _refuse(send: Asgi, status: int, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
