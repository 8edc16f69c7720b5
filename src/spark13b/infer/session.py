"""A loaded model with its tokenizer: questions in, answers out."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark13b.ckpt.adapters import OpenParts, Parts, parts_of
from spark13b.ckpt.opening import SUFFIXES
from spark13b.config import Preset, load_preset
from spark13b.data.tokenizer import MODEL_FILE, SparkTokenizer
from spark13b.errors import InputError
from spark13b.infer.conversation import Turn, conversation_ids
from spark13b.infer.prompts import Prompt
from spark13b.infer.requests import Generation, Piece, Request
from spark13b.run_folder import RunFolder, preset_for, weights_of

if TYPE_CHECKING:
    from spark13b.infer.decoding import Decoding
    from spark13b.infer.engine import Engine
    from spark13b.infer.native_model import NativeModel
    from spark13b.model.causal_lm import SparkForCausalLM
    from spark13b.model.mesh import Mesh

_ALONE = {"machine.devices": 1, "parallel.data_parallel": 1, "parallel.model_parallel": 1}


@dataclass(frozen=True)
class FoundModel:
    """Where a model's parts are."""

    preset: Preset
    weights: Parts
    tokenizer: SparkTokenizer
    is_demo: bool
    doubt: str | None = None  # a sentence to show

    def identity(self) -> str:
        """A number for these weights, this preset and this tokenizer: files by name, size and time of change."""
        files = []
        for part in (self.weights.base, self.weights.adapters):
            if part is not None:
                part = weights_of(part)  # and of its files those of weights: answers may be written beside them
                found = sorted(part.rglob("*")) if part.is_dir() else [part]
                kept = [one for one in found if one.is_file() and one.suffix in SUFFIXES]
                files += [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in kept]
        values = (files, self.preset.model.model_dump_json(), self.tokenizer.fingerprint)
        return hashlib.sha256(repr(values).encode()).hexdigest()

    def requests(
        self, prompts: Sequence[Prompt], logprobs: int | None = None, context: int | None = None, system: str = ""
    ) -> list[Request]:
        """The requests for prompts, in the preset's template; `context`: the most tokens, if fewer than the model's.

        `system` stands before every question that has none of its own and is not in tokens.

        Needs no weights. Raises InputError that names a prompt that cannot be answered.
        """
        model, options = self.preset.model, self.preset.generation
        context = min(context or model.seq_length, model.seq_length)
        template = options.prompt_template
        questions = [
            "\n".join(filter(None, (prompt.system or system, prompt.text)))
            for prompt in prompts
            if prompt.ids is None and not prompt.turns
        ]
        texts = iter(self.tokenizer.encode_batch([template.format(question) for question in questions]))
        requests = []
        for prompt in prompts:
            if prompt.turns:
                before = prompt.system or system
                turns = [*((Turn("system", before),) if before else ()), *prompt.turns]
                ids = conversation_ids(self.tokenizer, template, turns)
            else:
                ids = list(prompt.ids) if prompt.ids is not None else next(texts)
            shown = f": {prompt.shown[:30]}…" if prompt.ids is None else ""
            if len(ids) >= context:
                raise prompt.error(
                    f"the prompt has {len(ids)} tokens, the context holds {context} with the answer{shown}",
                    "shorten it, or use a model with a longer context",
                )
            wrong = next((one for one in ids if not 0 <= one < model.vocab_size), None)
            if wrong is not None:
                raise prompt.error(
                    f"token id {wrong} is outside the model's vocabulary of {model.vocab_size}",
                    "use ids of the model's own tokenizer",
                )
            goes_on = prompt.ids is not None and self.tokenizer.ends_in_text(ids)
            requests.append(Request(ids, options, logprobs, goes_on))
        return requests

    def context(self, requests: Sequence[Request]) -> int:
        """The most tokens of any request with its answer."""
        longest = max(len(request.prompt) for request in requests)
        return min(longest + self.preset.generation.max_new_tokens, self.preset.model.seq_length)


@dataclass(frozen=True)
class Answer:
    """One answer; `finish_reason` is `stop` (the model ended it) or `length`."""

    predict: str
    prompt_tokens: int
    new_tokens: int
    finish_reason: str


def demo_folder() -> Path:
    """Where `spark13b demo` keeps its model: SPARK13B_HOME/demo, by default in the user's data folder."""
    home = os.environ.get("SPARK13B_HOME")
    if home:
        return Path(home) / "demo"
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "spark13b" / "demo"


def demo_model() -> Path:
    """The run of the model that answers where none is named. Raises InputError when 'spark13b demo' has not made it."""
    run = demo_folder() / "sft"
    if not RunFolder(run).checkpoints():
        raise InputError(
            "no model was given, and there is no demo model yet",
            where=run,
            fix="add --load CHECKPOINT, or run 'spark13b demo' first",
        )
    return run


def find_model(
    load: Path | None,
    preset: str | None,
    tokenizer: Path | None,
    options: Mapping[str, Any],
    assignments: Sequence[str],
    adapter: Path | None = None,
) -> FoundModel:
    """Find weights, preset and tokenizer: those given, else those of the run that `load` is, else the demo's.

    A LoRA run stands for its adapters and their base; `adapter` names adapters that go beside `load`. Raises InputError
    that names what is missing.
    """
    is_demo = load is None
    if load is None:
        load = demo_model()
    name, run = preset_for(preset, load, adapter)
    if preset is None:  # a run's layout is that of its training; answers come from this process
        options = {**_ALONE, **options}
    values = load_preset(name, options=options, assignments=assignments)
    if tokenizer is None:
        if run is None or not run.tokenizer.exists():
            raise InputError(
                "no tokenizer was given", where=load, fix="add --tokenizer DIR, the folder of tokenizer.model"
            )
        tokenizer = run.tokenizer
    loaded = SparkTokenizer.load(tokenizer)
    doubt = f"the tokenizer is not the one of {run.path}" if run is not None and _differs(run, loaded) else None
    return FoundModel(values, parts_of(load, adapter), loaded, is_demo, doubt)


def _differs(run: RunFolder, tokenizer: SparkTokenizer) -> bool:
    """Whether a run has another tokenizer."""
    own = run.tokenizer / MODEL_FILE
    return own.is_file() and hashlib.sha256(own.read_bytes()).hexdigest() != tokenizer.fingerprint


class Session:
    """Answers questions with one model. Graphs are compiled at the first question of each length.

    `seats`: answers at once. `context`: the most tokens of a prompt and its answer, where that is known. `mesh`: the
    processes that share the model, this one being one of them. `fold`: adapters are added to the weights at once
    instead of being computed beside them. `reuse`: see `Engine`. `opened`: the model's files, if they are open.
    """

    def __init__(
        self,
        found: FoundModel,
        seats: int = 1,
        context: int | None = None,
        mesh: Mesh | None = None,
        fold: bool = False,
        reuse: bool = False,
        opened: OpenParts | None = None,
    ) -> None:
        from spark13b.infer.loading import load_model, load_part

        preset = found.preset
        self._found = found
        self.options, self.tokenizer = preset.generation, found.tokenizer
        self.seats, self._context, self._reuse = seats, context, reuse
        if found.tokenizer.vocab_size > preset.model.vocab_size:
            raise InputError(
                f"the tokenizer has {found.tokenizer.vocab_size} tokens, the model knows {preset.model.vocab_size}",
                where=found.tokenizer.where,
                fix="use the tokenizer that the model was trained with",
            )
        if mesh is None:
            self.model, doubt = load_model(found, fold, opened)
        else:
            self.model, doubt = load_part(found, mesh, fold, opened)
        self.doubt = "; ".join(filter(None, (found.doubt, doubt))) or None  # something to show
        if preset.generation.draft_tokens and (reason := _why_no_drafts(self.model, mesh)) is not None:
            raise InputError(
                f"guessed tokens are checked by the native library alone, and {reason}",
                where="generation.draft_tokens",
                fix="leave --draft-tokens out, or set generation.draft_tokens to 0",
            )
        self.make_decoder: Callable[..., Decoding] | None = None  # another than the usual, see `together`
        self._engine: Engine | None = None
        self._first: list[float] = []  # seconds to the first token of each answer

    @property
    def engine(self) -> Engine:
        """The engine that answers."""
        from spark13b.infer.engine import Engine
        from spark13b.infer.native_decoder import make_decoder as usual_decoder

        if self._engine is None:
            make_decoder = self.make_decoder or usual_decoder
            self._engine = Engine(
                self.model,
                self.tokenizer,
                self.seats,
                context=self._context,
                make_decoder=make_decoder,
                reuse=self._reuse,
            )
        return self._engine

    def choices(self) -> str:
        """What computes the answers, and why, in a sentence."""
        from spark13b.infer.native_decoder import describe

        return describe(self.model)

    def prompt_ids(self, question: str) -> list[int]:
        """The ids of a question in the preset's template."""
        return self.tokenizer.encode(self.options.prompt_template.format(question))

    def requests(self, prompts: Sequence[Prompt]) -> list[Request]:
        """The requests for prompts. Raises InputError that names a prompt that cannot be answered."""
        return self._found.requests(prompts, context=self._context)

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Piece]]:
        """Answer requests, as many at once as there are seats: (number of the request, what it has grown by).

        A request is taken when there is a seat for it, so that any number of them needs no more memory. When the caller
        leaves early, running answers end as `cancelled`.
        """
        engine, waiting = self.engine, iter(enumerate(requests))
        numbers: dict[int, int] = {}
        running: dict[int, Generation] = {}
        more = True
        try:
            while more or engine.busy:
                while more and engine.running + engine.waiting < max(engine.seats, 1):
                    number, request = next(waiting, (0, None))
                    if request is None:
                        more = False
                        break
                    generation = engine.add(request)
                    numbers[generation.number], running[generation.number] = number, generation
                for piece in engine.step() if engine.busy else ():
                    generation = piece.generation
                    if generation.done:
                        del running[generation.number]
                        if generation.first_token_at is not None:
                            self._first.append(generation.first_token_at - generation.added_at)
                    yield numbers[generation.number], piece
        finally:
            for generation in running.values():
                engine.cancel(generation)

    def answer(self, question: str) -> Answer:
        """The whole answer."""
        (answer,) = self.answers([question])
        return answer

    def answers(self, questions: Sequence[str]) -> Iterator[Answer]:
        """The answers, in the order of the questions."""
        requests = self.requests([Prompt(question) for question in questions])
        done: dict[int, Generation] = {}
        expected = 0
        for number, piece in self.run(requests):
            if piece.generation.done:
                done[number] = piece.generation
            while expected in done:
                one = done.pop(expected)
                expected += 1
                assert one.finish_reason is not None
                yield Answer(one.text, len(one.request.prompt), len(one.tokens), one.finish_reason)

    def stream(self, question: str) -> Iterator[str]:
        """The answer's text, each piece as soon as it is decided."""
        for _, piece in self.run(self.requests([Prompt(question)])):
            if piece.text:
                yield piece.text

    def speed(self) -> str:
        """One line on how fast the answers came; calls that compiled a graph are left out of the rates."""
        pace = self.engine.pace
        parts = []
        if pace.prompt_seconds:
            parts.append(f"prompts at {pace.prompt_tokens / pace.prompt_seconds:,.0f} tokens/s")
        if pace.reused_tokens:
            parts.append(f"{pace.reused_tokens:,} of their tokens were read before")
        if pace.step_seconds:
            parts.append(f"{pace.new_tokens:,} tokens at {pace.new_tokens / pace.step_seconds:,.0f} tokens/s")
        if self._first:
            parts.append(f"first token after {statistics.median(self._first):.2f} s (median)")
        if pace.compile_seconds:
            parts.append(f"compiled for {pace.compile_seconds:.1f} s")
        return ", ".join(parts) or "nothing was answered"


def _why_no_drafts(model: SparkForCausalLM | NativeModel, mesh: Mesh | None) -> str | None:
    """Why answers do not come from the native library, or None where they do."""
    from spark13b.infer.native_decoder import reason_for_mindspore

    return "several processes share the model" if mesh is not None else reason_for_mindspore(model)
