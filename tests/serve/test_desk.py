"""Between the event loop and the engine: nothing is lost when the engine is ahead of its clients."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve.in_process import EndlessEngine
from spark13b.config.sections import GenerationConfig
from spark13b.infer.requests import Piece, Request, Token
from spark13b.serve.desk import Busy, Desk


class HastyEngine(EndlessEngine):
    """Answers each request with `a`, `b`, `c`, in three steps."""

    def step(self) -> list[Piece]:
        pieces = []
        for one in self.generations:
            if not one.done:
                token = Token(len(one.tokens))
                one.tokens.append(token)
                one.finish_reason = "stop" if len(one.tokens) == 3 else None
                pieces.append(Piece(one, "abc"[token.id], (token,)))
        return pieces


def _desk(most: int) -> tuple[Any, Desk]:
    engine: Any = HastyEngine()
    return engine, Desk(engine, most)


def _request() -> Request:
    return Request([1], GenerationConfig())


def test_pieces_that_wait_while_the_answer_is_done_already_are_all_told() -> None:
    engine, desk = _desk(2)

    async def told() -> list[str]:
        tickets = desk.take([_request(), _request()])
        # the engine ends both answers before the loop reads a piece
        desk.serve(lambda: bool(engine.generations) and not engine.busy)
        texts = ["".join([piece.text async for piece in desk.pieces(ticket)]) for ticket in tickets]
        desk.release(tickets)
        return texts

    assert asyncio.run(told()) == ["abc", "abc"]
    assert desk.open == 0


def test_requests_are_taken_all_or_none() -> None:
    _, desk = _desk(2)

    async def take() -> None:
        first = desk.take([_request()])
        with pytest.raises(Busy):
            desk.take([_request(), _request()])
        assert desk.open == 1
        desk.release(first)
        desk.release(first)  # once more does no harm
        assert desk.open == 0
        desk.take([_request(), _request()])

    asyncio.run(take())


def test_who_leaves_cancels_the_answer() -> None:
    engine, desk = _desk(2)

    async def leave() -> None:
        desk.release(desk.take([_request()]))
        desk.serve(lambda: bool(engine.generations))

    asyncio.run(leave())
    assert engine.generations[0].finish_reason == "cancelled"
