"""`generate` and `stream`: the answer to one prompt of token ids, all at once or token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from spark13b.config.sections import GenerationConfig
from spark13b.infer.engine import Engine
from spark13b.infer.requests import Request
from spark13b.model.causal_lm import SparkForCausalLM

# A model keeps its engines, so that their graphs are compiled once. A stream takes one out while it runs. None is ever
# dropped: with a cell that goes, MindSpore 2.9 forgets other cells' graphs too.
_IDLE: WeakKeyDictionary[SparkForCausalLM, list[Engine]] = WeakKeyDictionary()


def generate(
    model: SparkForCausalLM,
    prompt_ids: Sequence[int],
    max_new_tokens: int = 40,
    *,
    end_id: int | None = None,
    **options: Any,
) -> list[int]:
    """The new token ids after `prompt_ids`, greedy unless `do_sample=True`; `options` as in GenerationConfig.

    Ends before `end_id` (not part of the result), after `max_new_tokens`, or where the context is full. Raises
    InputError for an empty prompt, one that leaves no room in the context, and ids outside the vocabulary.
    """
    return list(stream(model, prompt_ids, GenerationConfig(max_new_tokens=max_new_tokens, **options), end_id))


def stream(
    model: SparkForCausalLM, prompt_ids: Sequence[int], options: GenerationConfig, end_id: int | None = None
) -> Iterator[int]:
    """`generate`, each token as soon as it is chosen."""
    idle = _IDLE.setdefault(model, [])
    engine = idle.pop() if idle and options.num_beams == 1 else Engine(model, seats=options.num_beams)
    engine.end_id = end_id
    generation = engine.add(Request([int(token) for token in prompt_ids], options))
    try:
        while engine.busy:
            for piece in engine.step():
                yield from (token.id for token in piece.tokens)
    finally:
        engine.cancel(generation)
        if options.num_beams == 1:
            idle.append(engine)
