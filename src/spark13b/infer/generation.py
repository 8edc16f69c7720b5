"""`generate` and `stream`: the answer to one prompt, all at once or token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from spark13b.config.sections import GenerationConfig
from spark13b.errors import InputError
from spark13b.infer.decoder import Decoder
from spark13b.infer.sampling import Sampler
from spark13b.model.causal_lm import SparkForCausalLM

# A model keeps its decoders, so that their graphs are compiled once. A stream takes one out while it runs, since a
# decoder serves one text. None is ever dropped: with a cell that goes, MindSpore 2.9 forgets other cells' graphs too.
_IDLE: WeakKeyDictionary[SparkForCausalLM, list[Decoder]] = WeakKeyDictionary()


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
    prompt = _checked(model, prompt_ids)
    total = min(len(prompt) + options.max_new_tokens, model.config.seq_length)
    idle = _IDLE.setdefault(model, [])
    decoder = idle.pop() if idle else Decoder(model)
    try:
        sampler = Sampler(options)
        logits = decoder.prefill([prompt], total)
        for length in range(len(prompt), total):
            token = sampler.choose(logits[0])
            if token == end_id:
                return
            yield token
            if length + 1 < total:
                logits = decoder.step([token])
    finally:
        idle.append(decoder)


def _checked(model: SparkForCausalLM, prompt_ids: Sequence[int]) -> list[int]:
    prompt = [int(token) for token in prompt_ids]
    context, vocabulary = model.config.seq_length, model.config.vocab_size
    if not prompt:
        raise InputError("the prompt is empty", fix="give at least one token")
    if len(prompt) >= context:
        raise InputError(
            f"the prompt has {len(prompt)} tokens, the context holds {context} with the answer",
            fix="shorten the prompt, or raise model.seq_length",
        )
    if min(prompt) < 0 or max(prompt) >= vocabulary:
        wrong = next(token for token in prompt if not 0 <= token < vocabulary)
        raise InputError(
            f"token id {wrong} is outside the model's vocabulary of {vocabulary}",
            fix="use the tokenizer that the model was trained with",
        )
    return prompt
