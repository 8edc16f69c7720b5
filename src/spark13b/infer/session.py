"""A loaded model with its tokenizer: questions in, answers out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.ckpt.adapters import Parts, parts_of
from spark13b.config import Preset, load_preset
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError
from spark13b.run_folder import RunFolder, preset_for

_ALONE = {"machine.devices": 1, "parallel.data_parallel": 1, "parallel.model_parallel": 1}


@dataclass(frozen=True)
class FoundModel:
    """Where a model's parts are."""

    preset: Preset
    weights: Parts
    tokenizer: SparkTokenizer
    is_demo: bool


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
        load = demo_folder() / "sft"
        if not RunFolder(load).checkpoints():
            raise InputError(
                "no model was given, and there is no demo model yet",
                where=load,
                fix="add --load CHECKPOINT, or run 'spark13b demo' first",
            )
    if not load.exists():
        raise InputError("there is no such checkpoint", where=load, fix="check --load")
    name, run = preset_for(preset, load, adapter)
    if preset is None:  # a run's layout is that of its training; answers come from this process
        options = {**_ALONE, **options}
    values = load_preset(name, options=options, assignments=assignments)
    if tokenizer is None:
        if run is None or not run.tokenizer.is_dir():
            raise InputError(
                "no tokenizer was given", where=load, fix="add --tokenizer DIR, the folder of tokenizer.model"
            )
        tokenizer = run.tokenizer
    return FoundModel(values, parts_of(load, adapter), SparkTokenizer.load(tokenizer), is_demo)


class Session:
    """Answers questions with one model. Graphs are compiled at the first question of each length."""

    def __init__(self, found: FoundModel) -> None:
        from spark13b.model.causal_lm import SparkForCausalLM
        from spark13b.model.device import check_machine
        from spark13b.model.transformer import Setup

        preset = found.preset
        self.options, self.tokenizer = preset.generation, found.tokenizer
        check_machine(preset)
        if found.tokenizer.vocab_size > preset.model.vocab_size:
            raise InputError(
                f"the tokenizer has {found.tokenizer.vocab_size} tokens, the model knows {preset.model.vocab_size}",
                where=found.tokenizer.where,
                fix="use the tokenizer that the model was trained with",
            )
        with found.weights.open(preset.model) as parts:
            self.model = SparkForCausalLM(preset.model, seed=None, setup=Setup(lora=parts.lora))
            self.model.load_state(parts.base)
            if parts.adapters is not None:
                self.model.load_adapters(parts.adapters.tensors)
            self.doubt = parts.doubt()  # a sentence to show, or None
        self._tokens, self._seconds = 0, 0.0  # of decoding, first tokens left out
        self._first: float | None = None  # seconds to the very first token

    def prompt_ids(self, question: str) -> list[int]:
        """The ids of a question in the preset's template."""
        return self.tokenizer.encode(self.options.prompt_template.format(question))

    def check(self, questions: Sequence[str]) -> None:
        """Raise InputError for a question that leaves no room for an answer."""
        context = self.model.config.seq_length
        for number, question in enumerate(questions, 1):
            size = len(self.prompt_ids(question))
            if size >= context:
                raise InputError(
                    f"prompt {number} has {size} tokens, the context holds {context} with the answer: {question[:30]}…",
                    where="model.seq_length",
                    fix="shorten the prompt, or use a model with a longer context",
                )

    def answer(self, question: str) -> Answer:
        """The whole answer."""
        tokens = list(self._tokens_of(question))
        limit = self._limit(question)
        return Answer(
            self.tokenizer.decode(tokens),
            len(self.prompt_ids(question)),
            len(tokens),
            "length" if len(tokens) >= limit else "stop",
        )

    def stream(self, question: str) -> Iterator[str]:
        """The answer's text, each piece as soon as it is decided."""
        decoder = self.tokenizer.stream()
        for token in self._tokens_of(question):
            piece = decoder.push(token)
            if piece:
                yield piece
        rest = decoder.finish()
        if rest:
            yield rest

    def speed(self) -> str:
        """One line on how fast the answers came; the first token of a length includes compilation."""
        rate = self._tokens / self._seconds if self._seconds else 0.0
        first = f", first token after {self._first:.1f} s (with compilation)" if self._first is not None else ""
        return f"{self._tokens} tokens at {rate:.0f} tokens/s{first}"

    def _tokens_of(self, question: str) -> Iterator[int]:
        from spark13b.infer.generation import stream

        began = time.monotonic()
        for count, token in enumerate(
            stream(self.model, self.prompt_ids(question), self.options, self.tokenizer.end_id)
        ):
            passed = time.monotonic() - began
            if count > 1:  # the first two may wait for the compiler
                self._tokens += 1
                self._seconds += passed
            elif count == 0 and self._first is None:
                self._first = passed
            yield token
            began = time.monotonic()

    def _limit(self, question: str) -> int:
        return min(self.options.max_new_tokens, self.model.config.seq_length - len(self.prompt_ids(question)))
