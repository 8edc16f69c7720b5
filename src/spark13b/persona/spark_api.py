"""The Spark web API: one question a WebSocket, its URL signed with the customer's secret, the answer in JSON frames."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from spark13b.errors import InputError
from spark13b.persona.credentials import SparkCredentials
from spark13b.persona.teacher import Drawing, Message, NoAnswer, StopAsking, TryAgain

ADDRESS = "wss://spark-api.xf-yun.com"
PATHS = {  # of each model (the API's "domain"); the two belong together
    "4.0Ultra": "/v4.0/chat",
    "generalv3.5": "/v3.5/chat",
    "generalv3": "/v3.1/chat",
    "generalv2": "/v2.1/chat",
    "lite": "/v1.1/chat",
    "max-32k": "/chat/max-32k",
    "pro-128k": "/chat/pro-128k",
}
_STOP = frozenset((10003, 10004, 10005, 10015, 10016, 10163, 11200, 11201))
_THIS_LINE = frozenset((10013, 10014, 10019, 10021, 10907))  # any other: busy, or a fault of the server
_LOCAL = ("127.0.0.1", "localhost", "::1")
_TOP_K = 4
_SILENT = logging.Logger("spark13b.persona.wire", logging.CRITICAL + 1)  # websockets logs URLs, which are signed


class SparkApi:
    """A Teacher. `timeout` is the longest silence in seconds, also while connecting."""

    def __init__(
        self,
        credentials: SparkCredentials,
        model: str,
        drawing: Drawing,
        *,
        address: str = ADDRESS,
        timeout: float = 60,
        date: Callable[[], str] = lambda: formatdate(usegmt=True),
    ) -> None:
        """Raises InputError for an unknown model, or an address that would send the signature in the clear."""
        if model not in PATHS:
            raise InputError(
                f"the Spark web API has no model '{model}'", where="--model", fix=f"one of {', '.join(PATHS)}"
            )
        parts = urlsplit(address.rstrip("/"))
        if not re.fullmatch(r"wss?://([\w.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?", address.rstrip("/")):
            raise InputError("this is no address", where="--base-url", fix="write wss://HOST, or wss://HOST:PORT")
        if parts.scheme == "ws" and parts.hostname not in _LOCAL:
            raise InputError("ws:// is not encrypted", where="--base-url", fix=f"write wss://{parts.netloc}")
        if not 0 < drawing.temperature <= 1:
            raise InputError("the temperature is not above 0 and at most 1", where="--temperature", fix="take 0.5")
        self.where = f"{parts.scheme}://{parts.netloc}{PATHS[model]}"
        self.identity = f"spark {model} {drawing}"
        self._credentials, self._model, self._drawing = credentials, model, drawing
        self._timeout, self._date = timeout, date

    async def ask(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """Yield the answer as it comes. Raises a TeacherError."""
        try:
            url = signed_url(self.where, self._date(), self._credentials)
            async with connect(
                url, open_timeout=self._timeout, close_timeout=1, ping_interval=None, logger=_SILENT
            ) as socket:
                await socket.send(json.dumps(self._request(messages), ensure_ascii=False))
                last = False
                while not last:
                    content, last = self._read(await asyncio.wait_for(socket.recv(), self._timeout))
                    if content:
                        yield content
        except InvalidStatus as error:
            raise _refused(error.response.status_code) from None
        except ssl.SSLCertVerificationError as error:
            raise StopAsking(
                f"the server's certificate is not trusted: {error.verify_message}",
                fix="check --base-url, and the proxy between here and there",
            ) from None
        except TimeoutError:
            raise TryAgain(f"silence for {self._timeout:g} s") from None
        except (OSError, WebSocketException) as error:  # no text of theirs: it may hold the signed URL
            raise TryAgain(f"the connection failed: {type(error).__name__}") from None

    def _request(self, messages: Sequence[Message]) -> dict[str, Any]:
        drawing = self._drawing
        chat = {"domain": self._model, "temperature": drawing.temperature, "top_k": _TOP_K}
        return {
            "header": {"app_id": self._credentials.app_id, "uid": "spark13b"},
            "parameter": {"chat": {**chat, "max_tokens": drawing.max_tokens}},
            "payload": {"message": {"text": list(messages)}},
        }

    def _read(self, frame: str | bytes) -> tuple[str, bool]:
        """The text of a frame, and whether it is the last one."""
        try:
            reply = json.loads(frame)
            code = int(reply["header"]["code"])
            if code:
                raise _error(code, str(reply["header"].get("message", "no message")))
            choices = reply["payload"]["choices"]
            content = "".join(part["content"] or "" for part in choices["text"])
            last = choices["status"] == 2
        except (ValueError, LookupError, TypeError, AttributeError):
            raise TryAgain("a frame is not one of the Spark web API") from None
        usage = reply["payload"].get("usage") if last else None
        used = usage.get("text", {}).get("completion_tokens", 0) if isinstance(usage, dict) else 0
        if isinstance(used, int) and used >= self._drawing.max_tokens:
            raise NoAnswer(f"the answer was cut off at {self._drawing.max_tokens} tokens")
        return content, last


def signature(host: str, date: str, path: str, secret: str) -> str:
    """Base64 of the HMAC-SHA256 over host, date and request line, as the API's documentation has it."""
    signed = f"host: {host}\ndate: {date}\nGET {path} HTTP/1.1"
    return base64.b64encode(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256)).decode()


def signed_url(url: str, date: str, credentials: SparkCredentials) -> str:
    """The URL with the query that says who asks. The server takes it for 300 seconds around `date` (RFC 1123, GMT)."""
    parts = urlsplit(url)
    proof = signature(parts.netloc, date, parts.path, credentials.api_secret)
    authorization = (
        f'api_key="{credentials.api_key}", algorithm="hmac-sha256", '
        f'headers="host date request-line", signature="{proof}"'
    )
    query = {"authorization": base64.b64encode(authorization.encode()).decode(), "date": date, "host": parts.netloc}
    return f"{url}?{urlencode(query)}"


def _error(code: int, message: str) -> TryAgain | StopAsking | NoAnswer:
    message = " ".join(message.split())[:200]
    if code in _STOP:
        return StopAsking(message, code, fix=_cure(code))
    return NoAnswer(message, code) if code in _THIS_LINE else TryAgain(message, code)


def _cure(code: int) -> str:
    if code in (11200, 11201):
        return "the app has no right to this model, or its quota is used up: see the vendor's console"
    return "check SPARK_APP_ID and --model against the vendor's console"


def _refused(status: int) -> TryAgain | StopAsking:
    """The error for a handshake that was answered with another status than 101."""
    if 400 <= status < 500 and status not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        return StopAsking(
            f"the server refuses the connection with status {status}",
            fix="check SPARK_API_KEY and SPARK_API_SECRET, and this machine's clock: 300 s off is too much",
        )
    return TryAgain(f"the server answers the handshake with status {status}")
