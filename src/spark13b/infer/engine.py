"""The engine under every front end: many answers at once from one model."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError
from spark13b.infer.answer_text import AnswerText
from spark13b.infer.decoder import Decoder
from spark13b.infer.requests import FinishReason, Generation, Piece, Request, Token
from spark13b.infer.sampling import Sampler
from spark13b.model.causal_lm import SparkForCausalLM


class _Run:
    """A running answer: its decoder, its choices, its text."""

    def __init__(self, generation: Generation, decoder: Decoder, tokenizer: SparkTokenizer, total: int) -> None:
        self.generation, self.decoder, self.total = generation, decoder, total
        self.sampler = Sampler(generation.request.options)
        self.text = AnswerText(tokenizer.stream(), generation.request.options.stop)
        self.logits: np.ndarray | None = None


class Engine:
    """Answers requests, up to `seats` at once, the others in the order they came. One thread calls it.

    generation = engine.add(Request(prompt_ids, options))
    while engine.busy:
        for piece in engine.step():
            ...
    """

    def __init__(self, model: SparkForCausalLM, tokenizer: SparkTokenizer, seats: int = 8) -> None:
        self.model, self.tokenizer, self.seats = model, tokenizer, seats
        self._waiting: deque[Generation] = deque()
        self._running: list[_Run] = []
        self._idle: list[Decoder] = []
        self._numbers = 0

    @property
    def waiting(self) -> int:
        """Answers that wait for a seat."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that have a seat."""
        return len(self._running)

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._waiting or self._running)

    def check(self, request: Request) -> None:
        """Raise InputError for a prompt that is empty, leaves no room in the context, or has unknown ids."""
        context, vocabulary = self.model.config.seq_length, self.model.config.vocab_size
        if not request.prompt:
            raise InputError("the prompt is empty", fix="give at least one token")
        if len(request.prompt) >= context:
            raise InputError(
                f"the prompt has {len(request.prompt)} tokens, the context holds {context} with the answer",
                fix="shorten the prompt, or raise model.seq_length",
            )
        wrong = next((token for token in request.prompt if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise InputError(
                f"token id {wrong} is outside the model's vocabulary of {vocabulary}",
                fix="use the tokenizer that the model was trained with",
            )

    def add(self, request: Request) -> Generation:
        """Take a request. Raises as `check` does."""
        self.check(request)
        generation = Generation(request, self._numbers)
        self._numbers += 1
        self._waiting.append(generation)
        return generation

    def cancel(self, generation: Generation) -> None:
        """End an answer with what there is; its seat is free at once. Does nothing when it has ended already."""
        if generation in self._waiting:
            self._waiting.remove(generation)
            self._end(generation, "cancelled")
        for run in [run for run in self._running if run.generation is generation]:
            self._leave(run, "cancelled")

    def step(self) -> list[Piece]:
        """Let every running answer grow by a token (or read a part of its prompt); what they have grown by."""
        while self._waiting and len(self._running) < self.seats:
            generation = self._waiting.popleft()
            request = generation.request
            total = min(len(request.prompt) + request.options.max_new_tokens, self.model.config.seq_length)
            decoder = self._idle.pop() if self._idle else Decoder(self.model)
            run = _Run(generation, decoder, self.tokenizer, total)
            run.logits = decoder.prefill([list(request.prompt)], total)[0]
            self._running.append(run)
        return [self._grow(run) for run in list(self._running)]

    def _grow(self, run: _Run) -> Piece:
        generation = run.generation
        assert run.logits is not None
        chosen = run.sampler.choose(run.logits)
        generation.first_token_at = generation.first_token_at or time.monotonic()
        before = len(generation.text)
        if chosen == self.tokenizer.end_id:
            self._leave(run, "stop")
            return Piece(generation, generation.text[before:], ())
        token = Token(chosen)
        generation.tokens.append(token)
        generation.text += run.text.push(chosen)
        if run.text.stopped:
            self._leave(run, "stop")
        elif len(generation.request.prompt) + len(generation.tokens) >= run.total:
            self._leave(run, "length")
        else:
            run.logits = run.decoder.step([chosen])[0]
        return Piece(generation, generation.text[before:], (token,))

    def _leave(self, run: _Run, reason: FinishReason) -> None:
        self._running.remove(run)
        self._idle.append(run.decoder)
        run.generation.text += run.text.finish()
        self._end(run.generation, reason)

    @staticmethod
    def _end(generation: Generation, reason: FinishReason) -> None:
        generation.finish_reason, generation.finished_at = reason, time.monotonic()
