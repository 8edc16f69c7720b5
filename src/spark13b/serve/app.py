"""The routes: chat and text completions, models, health, metrics, and the chat page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from spark13b import __version__
from spark13b.errors import InputError
from spark13b.infer.conversation import conversation_ids
from spark13b.infer.requests import Generation, Piece
from spark13b.infer.requests import Request as Asked
from spark13b.infer.session import Session
from spark13b.serve.desk import Broken, Busy, Desk, Ticket
from spark13b.serve.guards import Guard
from spark13b.serve.metrics import Metrics
from spark13b.serve.replies import Reply, event, problem
from spark13b.serve.schemas import ChatBody, CompletionBody, Drawn, ProblemBody

_PAGE = Path(__file__).parent / "page" / "index.html"
_STATUS = (400, 401, 404, 405, 413, 422, 429, 500, 503, 504)
_ALTERNATIVE = re.compile(r"[\[\]]|^(str|int)$")  # pydantic names the alternatives of a union in the place
_PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": ProblemBody} for status in _STATUS}


@dataclass(frozen=True)
class Settings:
    """What the command's options say."""

    model_name: str = "spark13b"
    keys: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    timeout: float = 600.0  # seconds of one request
    log: Callable[[str], None] = field(default=lambda line: None)


class Refusal(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.body = status, problem(message, kind, param, code)


def make_app(session: Session, desk: Desk, settings: Settings) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(title="spark13b", version=__version__, docs_url=None, redoc_url=None, responses=_PROBLEMS)
    metrics = Metrics(lambda: desk.waiting, lambda: desk.running, lambda: desk.open)
    desk.on_end = metrics.ended
    kitchen = _Kitchen(session, desk, settings)
    model = {"id": settings.model_name, "object": "model", "created": int(time.time()), "owned_by": "spark13b"}

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """The next answer of a conversation."""
        try:
            ids = conversation_ids(
                session.tokenizer, session.options.prompt_template, [message.turn() for message in body.messages]
            )
        except ValueError as error:
            raise Refusal(400, str(error), "invalid_request_error", "messages") from None
        return await kitchen.reply(request, "chat", body, [_Prompt(ids)], body.most, body.alternatives)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Text that goes on from a prompt, as it is."""
        prompts = []
        for prompt in body.prompts:
            try:
                ids = prompt if isinstance(prompt, list) else session.tokenizer.encode(prompt)
            except ValueError as error:
                raise Refusal(400, str(error), "invalid_request_error", "prompt") from None
            unknown = any(not 0 <= one < session.tokenizer.vocab_size for one in ids)
            shown = prompt if isinstance(prompt, str) else "" if unknown else session.tokenizer.decode(ids)
            # behind a space, or a control token, which is no text, the answer's own space would be one too many
            goes_on = not shown.endswith(" ") and session.tokenizer.ends_in_text(ids)
            prompts.append(_Prompt(ids, shown if body.echo else "", goes_on))
        return await kitchen.reply(request, "text", body, prompts, body.max_tokens, body.logprobs)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """The model, if that is its name."""
        kitchen.check_model(name)
        return model

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Response:
        """Whether answers can be made."""
        fine = desk.failure is None
        return JSONResponse({"status": "ok" if fine else "the engine has failed"}, 200 if fine else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The chat page."""
        return _page()

    _handle_errors(app)
    app.add_middleware(Guard, keys=settings.keys, log=settings.log, count=metrics.count)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return app


@dataclass(frozen=True)
class _Prompt:
    """Token ids, what is told of them before the answer, and whether the answer goes on from their text."""

    ids: Sequence[int]
    echo: str = ""
    goes_on: bool = False


class _Kitchen:
    """Makes the answers of both kinds, at once or as streams."""

    def __init__(self, session: Session, desk: Desk, settings: Settings) -> None:
        self._session, self._desk, self._settings = session, desk, settings
        self._seeds = random.Random(session.options.seed)  # of requests without one: each draws another answer

    def check_model(self, name: str | None) -> None:
        """Raise Refusal for another model's name."""
        if name is not None and name != self._settings.model_name:
            text = f"there is no model '{name}' here, only '{self._settings.model_name}'"
            raise Refusal(404, text, "invalid_request_error", "model", "model_not_found")

    async def reply(
        self,
        client: Request,
        kind: str,
        body: Drawn,
        prompts: Sequence[_Prompt],
        most: int | None,
        logprobs: int | None,
    ) -> Response:
        """Answer each prompt `body.n` times."""
        self.check_model(body.model)
        requests = self._requests("messages" if kind == "chat" else "prompt", body, prompts, most, logprobs)
        if len(requests) > self._desk.most:
            text = f"{len(requests)} answers are more than the {self._desk.most} that fit here at a time"
            raise Refusal(400, text, "invalid_request_error", "n")
        try:
            tickets = self._desk.take(requests)
        except Busy:
            raise Refusal(429, "too many requests wait already; try again soon", "rate_limit_error") from None
        reply = Reply(kind, self._settings.model_name, self._session.tokenizer)
        told = [prompt.echo for prompt in prompts for _ in range(body.n or 1)]
        if body.stream:
            usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            return _Stream(self._events(reply, tickets, told, usage), lambda: self._desk.release(tickets))
        try:
            async with asyncio.timeout(self._settings.timeout):
                generations = await self._all(client, tickets)
        except TimeoutError:
            text = f"the answer took more than {self._settings.timeout:g} s"
            raise Refusal(504, text, "timeout_error") from None
        finally:
            self._desk.release(tickets)
        if generations is None:
            return Response(status_code=499)  # nobody reads it; the access log does
        return JSONResponse(reply.whole(generations, told))

    def _requests(
        self, param: str, body: Drawn, prompts: Sequence[_Prompt], most: int | None, logprobs: int | None
    ) -> list[Asked]:
        try:
            options = body.generation(self._session.options, most)
            if body.seed is None and options.do_sample:
                options = options.model_copy(update={"seed": self._seeds.randrange(2**32)})
            requests = []
            for prompt in prompts:
                for number in range(body.n or 1):
                    drawn = options.model_copy(update={"seed": (options.seed + number) % 2**32})
                    requests.append(Asked(prompt.ids, drawn, logprobs, prompt.goes_on))
                    self._desk.check(requests[-1])
        except InputError as error:
            code = "context_length_exceeded" if "the context holds" in error.what else None
            raise Refusal(400, f"{error.what}: {error.fix}", "invalid_request_error", param, code) from None
        except ValueError as error:
            raise Refusal(400, str(error).splitlines()[0], "invalid_request_error") from None
        if not requests:
            raise Refusal(400, "there is no prompt", "invalid_request_error", "prompt")
        return requests

    async def _all(self, client: Request, tickets: Sequence[Ticket]) -> list[Generation] | None:
        """The whole answers; None when the client has left."""

        async def gather() -> list[Generation]:
            return [[piece async for piece in self._desk.pieces(ticket)][-1].generation for ticket in tickets]

        async def left() -> None:
            while (await client.receive())["type"] != "http.disconnect":
                pass

        work, leaving = asyncio.ensure_future(gather()), asyncio.ensure_future(left())
        try:
            await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return None
            return work.result()
        finally:
            work.cancel()
            leaving.cancel()

    async def _events(
        self, reply: Reply, tickets: Sequence[Ticket], echoes: Sequence[str], with_usage: bool
    ) -> AsyncIterator[str]:
        """The server-sent events of a stream, its choices as they come."""
        generations: dict[int, Generation] = {}
        for index, echo in enumerate(echoes):
            if begin := reply.begin(index, echo):
                yield event(begin)
        try:
            async with asyncio.timeout(self._settings.timeout), aclosing(self._merged(tickets)) as pieces:
                async for index, piece in pieces:
                    if piece is None:
                        yield event(reply.end(index, generations[index]))
                        continue
                    generation = generations[index] = piece.generation
                    if piece.text or (piece.tokens and generation.request.logprobs is not None):
                        yield event(reply.piece(index, generation, piece.text, piece.tokens))
        except TimeoutError:
            yield event(problem(f"the answer took more than {self._settings.timeout:g} s", "timeout_error"))
            return
        except Broken as error:
            yield event(problem(str(error), "server_error"))
            return
        if with_usage:
            yield event(reply.usage([generations[index] for index in sorted(generations)]))
        yield event("[DONE]")

    async def _merged(self, tickets: Sequence[Ticket]) -> AsyncGenerator[tuple[int, Piece | None]]:
        """The pieces of several answers as they come, None at the end of each."""
        merged: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()

        async def one(index: int, ticket: Ticket) -> None:
            try:
                async for piece in self._desk.pieces(ticket):
                    merged.put_nowait((index, piece))
                merged.put_nowait((index, None))
            except Broken as error:
                merged.put_nowait((index, error))

        tasks = [asyncio.ensure_future(one(index, ticket)) for index, ticket in enumerate(tickets)]
        try:
            left = len(tasks)
            while left:
                index, item = await merged.get()
                if isinstance(item, Exception):
                    raise item
                left -= item is None
                yield index, item
        finally:
            for task in tasks:
                task.cancel()


class _Stream(StreamingResponse):
    """Server-sent events; `released` is called in the end, however that comes."""

    def __init__(self, events: AsyncIterator[str], released: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._released = released

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._released()


def _handle_errors(app: FastAPI) -> None:
    """Let every error have OpenAI's shape."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(Broken)
    async def broken(_: Request, error: Broken) -> Response:
        return JSONResponse(problem(str(error), "server_error"), 503)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = max(error.errors(), key=lambda one: len(one["loc"]))  # of alternatives the one that went farthest
        parts = [str(part) for part in first["loc"] if part != "body" and not _ALTERNATIVE.search(str(part))]
        place = first.get("ctx", {}).get("param") or ".".join(parts) or None
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            message, place = f"the body is not JSON: {first.get('ctx', {}).get('error', '')}", None
        elif isinstance(error.body, bytes):  # nothing read it: a page of another origin can send such a body unasked
            kind = request.headers.get("content-type", "nothing")
            message = f"the body is taken as JSON alone, and its content-type is {kind}: send 'application/json'"
        return JSONResponse(problem(message, "invalid_request_error", place), 400)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        message, path = str(error.detail), request.url.path
        if error.status_code == 404 and message == "Not Found":
            message = f"there is no {path} here" + ("" if path.startswith("/v1") else "; the API is under /v1")
        elif error.status_code == 400:  # FastAPI's only one
            message = "the body is not UTF-8, or nested too deeply"
        return JSONResponse(problem(message, "invalid_request_error"), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return JSONResponse(problem("something failed inside the server", "server_error"), 500)


def _page() -> Response:
    """The page, and a policy that lets nothing run but its own style and script."""
    if not _PAGE.is_file():
        raise HTTPException(404, "this installation has no chat page")
    text = _PAGE.read_text(encoding="utf-8")
    policy = ["default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    for tag in ("style", "script"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in inside]
        policy.append(f"{tag}-src " + " ".join(f"'sha256-{one}'" for one in hashes))
    headers = {
        "content-security-policy": "; ".join([*policy, "frame-ancestors 'none'"]),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)
