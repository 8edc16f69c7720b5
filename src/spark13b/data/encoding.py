"""From a block of records to token ids: the work that many processes share. Nothing here needs MindSpore."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from spark13b.config.template import PROMPT_TEMPLATE
from spark13b.data.blocks import Block
from spark13b.data.fields import FIELDS, Format, Turns, document, format_of, renamed, turns_of
from spark13b.data.records import Record, records_of
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError

Tokens = npt.NDArray[np.int32]
Mask = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Kind = Literal["pretrain", "sft"]

DIGEST_BYTES = 16
_EXCERPT = 80  # characters of a bad record
_BATCH_CHARACTERS = 1 << 18  # encoded at once: enough to hide the cost of a call, little enough to stay small


@dataclass(frozen=True)
class Recipe:
    """What becomes of a record. `names` tells for a field of ours that of the files."""

    kind: Kind
    model: bytes  # of the tokenizer
    template: str = PROMPT_TEMPLATE
    form: Format | None = None  # None: found out from each record's fields
    names: Mapping[str, str] = field(default_factory=dict)
    digests: bool = False


@dataclass
class Examples:
    """Documents or instruction examples as tokens, one behind the other.

    `ids` (n,) and `mask` (n,), 1 on what is to be learned; of each of the k examples its `lengths` in tokens, its
    `lines` in the file, its `characters`; `digests` (k,) of its text when they were asked for, else (0,).
    """

    ids: Tokens
    mask: Mask
    lengths: Counts
    lines: Counts
    characters: Counts
    empty: npt.NDArray[np.bool_]  # without a text or an answer
    digests: npt.NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.lengths)

    def chosen(self, keep: npt.NDArray[np.bool_]) -> Examples:
        """Those where `keep` (k,) is true."""
        tokens = np.repeat(keep, self.lengths)
        return Examples(
            self.ids[tokens],
            self.mask[tokens],
            self.lengths[keep],
            self.lines[keep],
            self.characters[keep],
            self.empty[keep],
            self.digests[keep] if len(self.digests) else self.digests,
        )


@dataclass
class Encoded:
    """What a block gave: `read` records, of which `flaws` could not be used."""

    examples: Examples
    read: int
    flaws: list[InputError]
    ignored_fields: Counter[str]  # and how many records have them
    formats: Counter[str]
    mapped: Counter[str] = field(default_factory=Counter)  # fields of `names`, and how many records have them


class _Item(NamedTuple):
    line: int
    characters: int
    turns: Turns


class Encoder:
    """Encodes blocks by a recipe; each process has one."""

    def __init__(self, recipe: Recipe, tokenizer: SparkTokenizer | None = None) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer or SparkTokenizer(recipe.model)

    def encode(self, block: Block) -> Encoded:
        """The examples of a block. What is wrong with a record is told in `flaws`, in order.

        pretrain: each text and `<end>`. sft: each question in the prompt template, each answer and `<end>`; prompt and
        answer are encoded apart, as they are when the model is asked.
        """
        found = Encoded(_joined([]), 0, [], Counter(), Counter())
        parts = []
        for batch in self._batches(block, found):
            parts.append(self._documents(batch) if self._recipe.kind == "pretrain" else self._conversations(batch))
        found.examples = _joined(parts)
        return found

    def _batches(self, block: Block, found: Encoded) -> Iterator[list[_Item]]:
        """Lists of items that hold about `_BATCH_CHARACTERS`; a document is one answer without a question."""
        batch: list[_Item] = []
        filled = 0
        for record in records_of(block):
            found.read += 1
            if isinstance(record, InputError):
                found.flaws.append(record)
                continue
            try:
                turns = self._turns(record, found)
            except InputError as error:
                shown = json.dumps(record.fields, ensure_ascii=False, default=str)
                what = f"{error.what}: {shown if len(shown) <= _EXCERPT else shown[:_EXCERPT] + '…'}"
                found.flaws.append(InputError(what, where=error.where, line=error.line, fix=error.fix))
                continue
            size = 0
            for question, answer in turns:
                size += len(question) + len(answer)
            batch.append(_Item(record.place.line, size, turns))
            filled += size + 1
            if filled >= _BATCH_CHARACTERS:
                yield batch
                batch, filled = [], 0
        if batch:
            yield batch

    def _turns(self, record: Record, found: Encoded) -> Turns:
        recipe = self._recipe
        if recipe.names:
            found.mapped.update(record.fields.keys() & recipe.names.values())
            record = renamed(record, recipe.names)
        if recipe.kind == "pretrain":
            turns, form = [("", document(record, recipe.form))], recipe.form or "text"
        else:
            form = recipe.form or format_of(record)
            turns = turns_of(record, form)
        found.formats[form] += 1
        if not record.fields.keys() <= FIELDS[form]:
            found.ignored_fields.update(record.fields.keys() - FIELDS[form])
        return turns

    def _documents(self, batch: list[_Item]) -> Examples:
        texts = [item.turns[0][1] for item in batch]
        encoded = self._tokenizer.encode_arrays(texts)
        end = np.array([self._tokenizer.end_id], np.int32)
        lengths = np.fromiter((len(ids) + 1 for ids in encoded), np.int64, len(encoded))
        ids = np.concatenate([part for one in encoded for part in (one, end)])
        return self._examples(batch, ids, np.ones(len(ids), np.uint8), lengths)

    def _conversations(self, batch: list[_Item]) -> Examples:
        """Prompt, answer, prompt, answer, ... of every example, as arrays; only what the answers have is learned."""
        tokenizer, template = self._tokenizer, self._recipe.template
        texts = [
            text for item in batch for question, answer in item.turns for text in (template.format(question), answer)
        ]
        encoded = tokenizer.encode_arrays(texts)
        later = {}  # prompts behind an answer: without the space that SentencePiece puts before a text
        at = 0
        for _, _, turns in batch:
            for number in range(1, len(turns)):
                later[at + 2 * number] = tokenizer.encode_after_end(texts[at + 2 * number])
            at += 2 * len(turns)
        end = np.array([tokenizer.end_id], np.int32)
        parts: list[Tokens] = []
        for number, ids in enumerate(encoded):
            parts += (ids, end) if number % 2 else (later.get(number, ids),)
        sizes = np.fromiter(map(len, parts), np.int64, len(parts)).reshape(-1, 3)  # prompt, answer, end
        flags = np.tile(np.array([0, 1, 1], np.uint8), len(sizes))
        turns_each = np.fromiter((len(item.turns) for item in batch), np.int64, len(batch))
        lengths = np.add.reduceat(sizes.sum(1), np.cumsum(turns_each) - turns_each)
        return self._examples(batch, np.concatenate(parts), np.repeat(flags, sizes.ravel()), lengths)

    def _examples(self, batch: list[_Item], ids: Tokens, mask: Mask, lengths: Counts) -> Examples:
        count = len(batch)
        digests = [_digest(item.turns) for item in batch] if self._recipe.digests else []
        return Examples(
            ids,
            mask,
            lengths,
            np.fromiter((item.line for item in batch), np.int64, count),
            np.fromiter((item.characters for item in batch), np.int64, count),
            np.fromiter((not all(answer for _, answer in item.turns) for item in batch), np.bool_, count),
            np.array(digests, f"S{DIGEST_BYTES}"),
        )


def _digest(turns: Turns) -> bytes:
    """A number for the text alone: the same record has the same in every file and format."""
    text = "\0".join(part for turn in turns for part in turn)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def _joined(parts: list[Examples]) -> Examples:
    if len(parts) == 1:
        return parts[0]

    def all_of(name: str, kind: npt.DTypeLike) -> npt.NDArray[np.generic]:
        return np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in parts)])

    return Examples(
        all_of("ids", np.int32),  # type: ignore[arg-type]
        all_of("mask", np.uint8),  # type: ignore[arg-type]
        all_of("lengths", np.int64),  # type: ignore[arg-type]
        all_of("lines", np.int64),  # type: ignore[arg-type]
        all_of("characters", np.int64),  # type: ignore[arg-type]
        all_of("empty", np.bool_),  # type: ignore[arg-type]
        all_of("digests", f"S{DIGEST_BYTES}"),  # type: ignore[arg-type]
    )
