"""A teacher over any endpoint that speaks OpenAI's chat API: our own `spark13b serve` too."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx2

from spark13b.errors import InputError
from spark13b.persona.teacher import Drawing, Message, NoAnswer, StopAsking, TeacherError, TryAgain

_AGAIN = (408, 409, 425, 429)  # and all from 500 on
_THIS_LINE = (400, 413, 422)


class OpenAITeacher:
    """A Teacher. `address` ends in /v1 as a rule; `key` goes into the Authorization header and nowhere else.

    `timeout` is the longest silence in seconds, also while connecting.
    """

    def __init__(self, address: str, model: str, key: str | None, drawing: Drawing, *, timeout: float = 60) -> None:
        """Raises InputError for an address that is none."""
        if not re.match("https?://[^/]", address):
            raise InputError("this is no address", where="--base-url", fix="write http://HOST:PORT/v1")
        self.where = address.rstrip("/") + "/chat/completions"
        self.identity = f"openai {model} {drawing}"
        self._model, self._key, self._drawing = model, key, drawing
        self._timeout = timeout
        self._trust = httpx2.create_ssl_context()  # takes 20 ms, so it is made once

    async def ask(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """Yield the answer as it comes. Raises a TeacherError."""
        request = {
            "model": self._model,
            "messages": list(messages),
            "temperature": self._drawing.temperature,
            "max_tokens": self._drawing.max_tokens,
            "stream": True,
        }
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            async with (
                httpx2.AsyncClient(timeout=self._timeout, headers=headers, verify=self._trust) as client,
                client.stream("POST", self.where, json=request) as response,
            ):
                if response.status_code != 200:
                    raise _refused(response, await response.aread())
                async for content in self._read(response):
                    yield content
        except httpx2.TimeoutException:
            raise TryAgain(f"silence for {self._timeout:g} s") from None
        except httpx2.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise StopAsking("the server's certificate is not trusted", fix="check --base-url") from None
            raise TryAgain("the server cannot be reached") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise TryAgain(f"the connection failed: {type(error).__name__}") from None

    async def _read(self, response: httpx2.Response) -> AsyncGenerator[str, None]:
        """The pieces of a stream of server-sent events, up to the one that says why it ends."""
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                break
            content, reason = _piece(data)
            if content:
                yield content
            if reason == "length":
                raise NoAnswer(f"the answer is too long: cut off, at {self._drawing.max_tokens} tokens or before")
            if reason == "content_filter":
                raise NoAnswer("the answer is refused for its content")
            if reason is not None:
                return
        raise TryAgain("the stream ended before the answer did")


def _piece(data: str) -> tuple[str, str | None]:
    """The text of an event, and why the answer ends with it."""
    try:
        event: Any = json.loads(data)
        if event.get("error"):
            raise TryAgain(_message(data.encode()))
        if not event["choices"]:  # the numbers of tokens, as some send them at the end
            return "", None
        choice = event["choices"][0]
        content = choice.get("delta", {}).get("content") or ""
        reason = choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise TryAgain("an event is not one of OpenAI's chat API") from None
    return str(content), None if reason is None else str(reason)


def _refused(response: httpx2.Response, body: bytes) -> TeacherError:
    status = response.status_code
    what = f"status {status}: {_message(body)}"
    if b"insufficient_quota" in body:
        return StopAsking(what, fix="the account is out of quota: see its console")
    if status in _AGAIN or status >= 500:
        after = response.headers.get("Retry-After", "")
        return TryAgain(what, after=float(after) if re.fullmatch(r"\d{1,4}(\.\d+)?", after) else 0)
    if status in _THIS_LINE:
        return NoAnswer(what)
    return StopAsking(what, fix="check --base-url, --model and the key")


def _message(body: bytes) -> str:
    """What the server says is wrong, on one line."""
    text = body.decode("utf-8", "replace")
    try:
        error: Any = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        pass
    return " ".join(text.split())[:200]
