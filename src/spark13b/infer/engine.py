"""The engine under every front end: many answers at once from one model.

Steps read what there is room for of the waiting prompts, at most `chunk` tokens, and let every running answer grow by a
token. Texts of similar length share a decoder, so that a short one does not pay for the cache of a long one, and
so that an answer's numbers depend on its own request alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError
from spark13b.infer.decoding import Decoding
from spark13b.infer.native_decoder import make_decoder as usual_decoder
from spark13b.infer.native_model import NativeModel
from spark13b.infer.requests import Generation, Piece, Request
from spark13b.infer.running import Beams, Single, finish
from spark13b.infer.seating import Seating

if TYPE_CHECKING:
    from spark13b.model.causal_lm import SparkForCausalLM

_SMALLEST, _GROWTH = 256, 4  # slots of the caches on a CPU: 256, 1024, 4096, ... up to those of the whole context
_ALONE = 4096  # the smallest for one conversation: what is not written takes no memory, and a larger one is read anew


@dataclass
class Pace:
    """What the engine did and how long it took, in tokens and seconds, without the calls that compiled a graph."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    reused_tokens: int = 0  # of prompts, which needed no reading
    new_tokens: int = 0
    step_seconds: float = 0.0
    compile_seconds: float = 0.0  # of those calls


@dataclass
class _Clock:
    """One call of a decoder."""

    seconds: float = 0.0
    compiled: bool = False


@dataclass
class _Reading:
    """A prompt that is being read."""

    generation: Generation
    seating: Seating
    done: int = 0  # tokens of it


@dataclass
class _Room:
    """The texts that share a decoder."""

    seating: Seating
    running: list[Single | Beams] = field(default_factory=list)


class Engine:
    """Answers requests, up to `seats` at once, the others in the order they came. One thread calls it.

    generation = engine.add(Request(prompt_ids, options))
    while engine.busy:
        for piece in engine.step():
            ...

    `context` bounds a text, prompt and answer, where it is to be shorter than the model's. Without a tokenizer answers
    have no text, stop strings do nothing, and `end_id` ends an answer. `make_decoder`: see `together`.

    With `reuse` a prompt is read from where it differs from a text that was read before. Keys and values of tokens that
    were read in other parts, or chosen, differ by rounding, and so may an answer.
    """

    def __init__(
        self,
        model: SparkForCausalLM | NativeModel,
        tokenizer: SparkTokenizer | None = None,
        seats: int = 8,
        *,
        context: int | None = None,
        chunk: int = 512,
        end_id: int | None = None,
        make_decoder: Callable[..., Decoding] = usual_decoder,
        reuse: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.seats, self.chunk = model, tokenizer, seats, chunk
        self.context = min(context or model.config.seq_length, model.config.seq_length)
        self.end_id = tokenizer.end_id if tokenizer is not None else end_id
        # a model may have more tokens than its tokenizer, to round their number up: they are never chosen
        self._known = tokenizer.vocab_size if tokenizer is not None else model.config.vocab_size
        self.pace = Pace()
        self._make_decoder, self._reuse = make_decoder, reuse
        self._waiting: deque[Generation] = deque()
        self._reading: _Reading | None = None
        self._rooms: dict[int, _Room] = {}  # by the slots of their caches
        self._numbers = 0
        self._has_read = False  # the last step told first tokens

    @property
    def waiting(self) -> int:
        """Answers that wait for a seat."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that have a seat."""
        return sum(len(room.running) for room in self._rooms.values()) + (self._reading is not None)

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._waiting or self.running)

    def check(self, request: Request) -> None:
        """Raise InputError for a prompt that is empty, leaves no room in the context, or has unknown ids."""
        vocabulary = self.model.config.vocab_size
        if not request.prompt:
            raise InputError("the prompt is empty", fix="give at least one token")
        if len(request.prompt) >= self.context:
            raise InputError(
                f"the prompt has {len(request.prompt)} tokens, the context holds {self.context} with the answer",
                fix="shorten the prompt, or raise model.seq_length",
            )
        wrong = next((token for token in request.prompt if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise InputError(
                f"token id {wrong} is outside the model's vocabulary of {vocabulary}",
                fix="use the tokenizer that the model was trained with",
            )
        if request.options.num_beams > max(self.seats, 1):
            raise InputError(
                f"{request.options.num_beams} beams need as many seats, there are {self.seats}",
                where="generation.num_beams",
                fix="choose fewer beams or more seats",
            )

    def add(self, request: Request) -> Generation:
        """Take a request. Raises as `check` does."""
        self.check(request)
        generation = Generation(request, self._numbers)
        self._numbers += 1
        self._waiting.append(generation)
        return generation

    def cancel(self, generation: Generation) -> None:
        """End an answer with what there is; its seats are free at once. Does nothing when it has ended already.

        Also after a step that did not end, by Ctrl-C: an answer may have ended in it and still have its seats.
        """
        if generation in self._waiting:
            self._waiting.remove(generation)
        if self._reading is not None and self._reading.generation is generation:
            self._reading = None
        for room in self._rooms.values():
            for run in [run for run in room.running if run.generation is generation]:
                if not generation.done:
                    run.end("cancelled")
                self._leave(room, run)
        if not generation.done:
            finish(generation, "cancelled")

    def step(self) -> list[Piece]:
        """Read some of the waiting prompts, or let every running answer grow by a token; what they have grown by.

        The two take turns, so that a first token is told at once, and that many prompts hold up no running answer.
        """
        if not self._has_read or not any(room.running for room in self._rooms.values()):
            pieces = self._read()
            self._has_read = bool(pieces)
            if pieces:
                return pieces
        self._has_read = False
        return [piece for room in self._rooms.values() if room.running for piece in self._grow(room)]

    def _read(self) -> list[Piece]:
        """Read up to `chunk` tokens of prompts -> the first tokens of those that were read to their end."""
        pieces: list[Piece] = []
        budget = self.chunk
        while budget > 0 and (self._reading or self._admit()):
            reading = self._reading
            assert reading is not None
            prompt = reading.generation.request.prompt
            part = list(prompt[reading.done : reading.done + self.chunk])
            with self._timed(reading.seating.decoder) as clock:
                logits = reading.seating.read(part, reading.done)[: self._known]
            if not clock.compiled:
                self.pace.prompt_tokens += len(part)
                self.pace.prompt_seconds += clock.seconds
            reading.done += len(part)
            budget -= len(part)
            if reading.done == len(prompt):
                self._reading = None
                pieces += self._begin(reading, logits)
        return pieces

    def _admit(self) -> bool:
        """Let the next prompt come to the reading seat, if there are seats for it."""
        if not self._waiting:
            return False
        request = self._waiting[0].request
        taken = sum(run.seats for room in self._rooms.values() for run in room.running)
        if taken + request.options.num_beams > max(self.seats, 1):
            return False
        seating = self._room_for(self._total(request)).seating
        seating.clear_reading(request.prompt)
        generation = self._waiting.popleft()
        generation.reused = seating.resume(request.prompt) if self._reuse else 0
        self.pace.reused_tokens += generation.reused
        self._reading = _Reading(generation, seating, generation.reused)
        return True

    def _begin(self, reading: _Reading, logits: np.ndarray) -> list[Piece]:
        """Seat the answer whose prompt was read, and choose its first token."""
        generation, seating = reading.generation, reading.seating
        room = next(room for room in self._rooms.values() if room.seating is seating)
        total = self._total(generation.request)
        make = Beams if generation.request.options.num_beams > 1 else Single
        run = make(generation, seating, total, self.tokenizer, self.end_id)
        room.running.append(run)
        run.come(alone=not self._waiting)
        generation.first_token_at = time.monotonic()
        piece = run.take(logits[None])
        if generation.done:
            self._leave(room, run)
        return [piece]

    def _grow(self, room: _Room) -> list[Piece]:
        if not self._waiting and self._reading is None:
            room.seating.gather()
        fed = [run.next() for run in room.running]
        seats, tokens, positions = zip(*(feed for feeds in fed for feed in feeds), strict=True)
        with self._timed(room.seating.decoder) as clock:
            logits = room.seating.step(seats, tokens, positions)[:, : self._known]
        pieces, first = [], 0
        for run, feeds in zip(list(room.running), fed, strict=True):
            pieces.append(run.take(logits[first : first + len(feeds)]))
            first += len(feeds)
            if not clock.compiled:
                self.pace.new_tokens += len(feeds) - run.wasted
            if run.generation.done:
                self._leave(room, run)
        if not clock.compiled:
            self.pace.step_seconds += clock.seconds
        return pieces

    @contextmanager
    def _timed(self, decoder: Decoding) -> Iterator[_Clock]:
        clock, graphs, began = _Clock(), decoder.graphs, time.monotonic()
        yield clock
        clock.seconds, clock.compiled = time.monotonic() - began, decoder.graphs > graphs
        if clock.compiled:
            self.pace.compile_seconds += clock.seconds

    def _leave(self, room: _Room, run: Single | Beams) -> None:
        run.leave()
        room.running.remove(run)

    def _total(self, request: Request) -> int:
        """The most tokens that a text can have."""
        return min(len(request.prompt) + request.options.max_new_tokens, self.context)

    def _room_for(self, total: int) -> _Room:
        slots = self._slots(total)
        if slots not in self._rooms:
            seats = self.seats if self.seats > 1 else 0
            decoder = self._make_decoder(self.model, slots, seats, self.chunk)
            self._rooms[slots] = _Room(Seating(decoder, self._reuse))
        return self._rooms[slots]

    def _slots(self, total: int) -> int:
        """Slots of the cache for a text of `total` tokens: one of few sizes, since graphs are compiled for each.

        An NPU's memory is read so fast, and graphs are compiled so slowly, that one size serves all there.
        """
        most = min(self.context, self.model.config.cache_slots)
        if not self._on_cpu():
            return most
        slots = _ALONE if self._reuse and self.seats <= 1 and isinstance(self.model, NativeModel) else _SMALLEST
        while slots < total:
            slots *= _GROWTH
        return min(slots, most)

    def _on_cpu(self) -> bool:
        if isinstance(self.model, NativeModel):
            return True
        from spark13b.model.device import device

        return device() == "cpu"
