"""From records to token ids, many at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from spark13b.config.template import PROMPT_TEMPLATE
from spark13b.data.fields import DOCUMENT_FIELDS, EXAMPLE_FIELDS, document, question_and_answer
from spark13b.data.ledger import Ledger
from spark13b.data.place import Place
from spark13b.data.records import Record
from spark13b.data.tokenizer import SparkTokenizer

Tokens = npt.NDArray[np.int32]
T = TypeVar("T")

_BATCH_CHARACTERS = 1 << 18  # encoded at once: enough to hide the cost of a call, little enough to stay small


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction example: `ids` (n,) int32 of prompt and answer; the first `prompt_length` are the prompt."""

    ids: Tokens
    prompt_length: int
    place: Place


def encode_documents(records: Iterable[Record], tokenizer: SparkTokenizer, ledger: Ledger) -> Iterator[Tokens]:
    """Yield the token stream of pretraining records in chunks (n,) int32: each text, then `<end>`.

    Raises InputError, with file and line, for a record without a text.
    """
    texts = (document(record) for record in _counted(records, ledger, DOCUMENT_FIELDS))
    for batch in _batches(texts, len):
        encoded = tokenizer.encode_batch(batch)
        chunk = _flat(encoded, tokenizer.end_id)
        ledger.kept += len(batch)
        ledger.packed += len(batch)
        ledger.empty += batch.count("")
        ledger.characters += sum(map(len, batch))
        ledger.tokens += len(chunk)
        yield chunk


def encode_examples(records: Iterable[Record], tokenizer: SparkTokenizer, ledger: Ledger) -> Iterator[Example]:
    """Yield instruction records as token ids: the prompt template around the question, the answer, `<end>`.

    Prompt and answer are encoded apart, as they are when the model is asked. Raises InputError, with file and line,
    for a record without a question or an answer.
    """
    texts = ((record.place, *question_and_answer(record)) for record in _counted(records, ledger, EXAMPLE_FIELDS))
    for batch in _batches(texts, lambda text: len(text[1]) + len(text[2])):
        prompts = tokenizer.encode_batch([PROMPT_TEMPLATE.format(question) for _, question, _ in batch])
        answers = tokenizer.encode_batch([answer for _, _, answer in batch])
        ids = _flat([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)], tokenizer.end_id)
        ledger.characters += sum(len(question) + len(answer) for _, question, answer in batch)
        ledger.empty += sum(not answer for _, _, answer in batch)
        start = 0
        for (place, _, _), prompt, answer in zip(batch, prompts, answers, strict=True):
            end = start + len(prompt) + len(answer) + 1
            yield Example(ids[start:end], len(prompt), place)
            start = end


def _counted(records: Iterable[Record], ledger: Ledger, used: frozenset[str]) -> Iterator[Record]:
    """Pass `records` on; note in the ledger how many there are and which of their fields are not used."""
    for record in records:
        ledger.read += 1
        for name in record.fields.keys() - used:
            ledger.ignored_fields[name] = ledger.ignored_fields.get(name, 0) + 1
        yield record


def _batches(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of items that hold about `_BATCH_CHARACTERS` together; empty texts count, too."""
    batch: list[T] = []
    filled = 0
    for item in items:
        batch.append(item)
        filled += size(item) + 1
        if filled >= _BATCH_CHARACTERS:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def _flat(encoded: list[list[int]], end_id: int) -> Tokens:
    """All ids in one array, `end_id` after each list."""
    for ids in encoded:
        ids.append(end_id)
    return np.fromiter(itertools.chain.from_iterable(encoded), np.int32, sum(map(len, encoded)))
