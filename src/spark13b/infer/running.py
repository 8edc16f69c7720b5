"""Running answers: what a step's logits make of them. `Single` is one text, `Beams` are several for one answer."""

from __future__ import annotations

import time

import numpy as np

from spark13b.data.tokenizer import SparkTokenizer
from spark13b.infer.answer_text import AnswerText
from spark13b.infer.beams import BeamSearch, Hypothesis
from spark13b.infer.drafts import Drafts
from spark13b.infer.requests import FinishReason, Generation, Piece, Token
from spark13b.infer.sampling import Sampler, logprobs_of
from spark13b.infer.seating import Seating

Feed = tuple[int, int, int]  # what goes into a step: seat, token, position


class Single:
    """One text that grows by a token a step, or by as many as were guessed right, as the request's options say."""

    seats = 1

    def __init__(
        self, generation: Generation, seating: Seating, total: int, tokenizer: SparkTokenizer | None, end_id: int | None
    ) -> None:
        self.generation = generation
        self._seating, self._end_id = seating, end_id
        prompt, options = generation.request.prompt, generation.request.options
        self._most = total - len(prompt)
        drafts = options.draft_tokens if seating.decoder.checks_drafts else 0
        self._drafts = Drafts(prompt, drafts) if drafts else None
        self._guessed: list[int] = []  # in the step that is computed
        self.wasted = 0  # tokens of the last step that were guessed wrong
        self._sampler = Sampler(options, end_id)
        self._text = None
        if tokenizer is not None:
            self._text = AnswerText(tokenizer.stream(begins=not generation.request.goes_on), options.stop)

    def come(self, alone: bool) -> None:
        """Take the seat where the prompt was read."""
        self._seating.come(self, alone)

    def leave(self) -> None:
        """Free the seat."""
        self._seating.leave(self)

    def next(self) -> list[Feed]:
        """What the next step is to append."""
        tokens = self.generation.tokens
        position = len(self.generation.request.prompt) + len(tokens) - 1
        if self._drafts is not None:  # no more than the answer and its ring have room for
            room = min(self._most - len(tokens) - 1, self._seating.decoder.slots - position - 1)
            self._guessed = self._drafts.guess(max(room, 0))
        seat = self._seating.seat_of(self)
        return [(seat, token, position + at) for at, token in enumerate([tokens[-1].id, *self._guessed])]

    def take(self, logits: np.ndarray) -> Piece:
        """Choose the next token from logits (1, V); from (1 + guesses, V) more, as long as the guesses are right."""
        generation, guessed = self.generation, self._guessed
        self._guessed = []
        text, tokens = len(generation.text), len(generation.tokens)
        right = 0
        while True:
            chosen = self._append(logits[right])
            if generation.done or right == len(guessed) or chosen != guessed[right]:
                break
            right += 1
        self.wasted = len(guessed) - right
        if self._drafts is not None and guessed:
            self._drafts.judge(len(guessed), right)
        return Piece(generation, generation.text[text:], tuple(generation.tokens[tokens:]))

    def _append(self, logits: np.ndarray) -> int:
        """Choose the next token from logits (V,); the answer may be at its end."""
        generation, tops = self.generation, self.generation.request.logprobs
        chosen = self._sampler.choose(logits)
        if chosen == self._end_id:
            self.end("stop")
            return chosen
        token = Token(chosen) if tops is None else Token(chosen, *logprobs_of(logits, chosen, tops))
        generation.tokens.append(token)
        if self._drafts is not None:
            self._drafts.add(chosen)
        stops = False
        if self._text is not None:
            watched = len(generation.tokens) > generation.request.options.min_new_tokens
            generation.text += self._text.push(chosen, watched)
            stops = self._text.stopped
        if stops:
            self.end("stop")
        elif len(generation.tokens) >= self._most:
            self.end("length")
        return chosen

    def end(self, reason: FinishReason) -> None:
        """The answer has ended: hand out the text that was held back."""
        if self._text is not None:
            self.generation.text += self._text.finish()
        finish(self.generation, reason)


class Beams:
    """Beam search: `num_beams` texts that compete; the answer is there when none can win any more."""

    wasted = 0

    def __init__(
        self, generation: Generation, seating: Seating, total: int, tokenizer: SparkTokenizer | None, end_id: int | None
    ) -> None:
        self.generation = generation
        self._seating, self._tokenizer = seating, tokenizer
        request = generation.request
        self.seats = request.options.num_beams
        self._search = BeamSearch(request.options, end_id, total - len(request.prompt))
        self._texts: list[object] = []
        self._tokens: list[int] = []
        self._length = len(request.prompt) - 1

    def come(self, alone: bool) -> None:
        """Take the seat where the prompt was read; the others follow when the first tokens are known."""
        self._texts = [object()]
        self._seating.come(self._texts[0], alone=False)

    def leave(self) -> None:
        """Free the seats."""
        for text in self._texts:
            self._seating.leave(text)

    def next(self) -> list[Feed]:
        """What the next step is to append."""
        return [
            (self._seating.seat_of(text), token, self._length)
            for text, token in zip(self._texts, self._tokens, strict=True)
        ]

    def take(self, logits: np.ndarray) -> Piece:
        """Let the beams go on that logits (beams, V) favour."""
        step = self._search.advance(logits)
        if self._search.done:
            self.end("stop")
            return Piece(self.generation, self.generation.text, tuple(self.generation.tokens))
        # a beam whose text goes on keeps its place, so nothing is copied over that is still needed
        for place, parent in enumerate(step.parents):
            if place >= len(self._texts):
                self._texts.append(object())
                self._seating.fork(self._texts[place], self._texts[parent])
            elif parent != place:
                self._seating.become(self._texts[place], self._texts[parent])
        for text in self._texts[len(step.parents) :]:
            self._seating.leave(text)
        del self._texts[len(step.parents) :]
        self._tokens = list(step.tokens)
        self._length += 1
        return Piece(self.generation, "", ())

    def end(self, reason: FinishReason) -> None:
        """The best beam is the answer, the others are its alternatives."""
        generation = self.generation
        found = self._search.best(self.seats)
        for hypothesis in found[1:]:
            other = Generation(generation.request, generation.number)
            self._fill(other, hypothesis, reason)
            generation.alternatives.append(other)
        if found:
            self._fill(generation, found[0], reason)
        else:
            finish(generation, reason)

    def _fill(self, generation: Generation, hypothesis: Hypothesis, reason: FinishReason) -> None:
        logprobs = hypothesis.logprobs if generation.request.logprobs is not None else [None] * len(hypothesis.tokens)
        generation.tokens = [Token(*pair) for pair in zip(hypothesis.tokens, logprobs, strict=True)]
        generation.score = hypothesis.score
        if self._tokenizer is not None:
            begins = not generation.request.goes_on
            generation.text = self._tokenizer.decode(hypothesis.tokens, begins=begins)
        finish(generation, reason if hypothesis.ended or reason == "cancelled" else "length")


def finish(generation: Generation, reason: FinishReason) -> None:
    """Mark an answer as ended."""
    generation.finish_reason, generation.finished_at = reason, time.monotonic()
