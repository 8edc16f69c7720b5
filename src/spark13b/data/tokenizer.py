"""The tokenizer: SentencePiece with the special tokens and the newline and tab rules of iFlytekSpark.

Encoding: "\\n" -> `<ret>`, "\\t" -> four spaces, then SentencePiece. Decoding: the whole sequence at once,
`<ret>` -> "\\n", special tokens dropped. All ids are read from the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spark13b.characters import half_character
from spark13b.config.template import PROMPT_TEMPLATE
from spark13b.data.model_file import BYTE, CONTROL, USER_DEFINED, ModelFile, with_types
from spark13b.data.stream_decoder import PieceTable, StreamDecoder
from spark13b.errors import InputError

Tokens = npt.NDArray[np.int32]

MODEL_FILE = "tokenizer.model"
VOCAB_FILE = "tokenizer.vocab"

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
END, RET, USER, BOT = "<end>", "<ret>", "<User>", "<Bot>"
REQUIRED = (END, PAD, RET, USER, BOT)
_IN_TEXT = (END, RET, USER, BOT)  # these mean their id wherever they stand in a text
_LONGEST = 1 << 17  # characters that SentencePiece is given at once
_HIDDEN = (PAD, BOS, EOS, END, USER, BOT)  # dropped from decoded text


class SparkTokenizer:
    """A SentencePiece model with the tokens of iFlytekSpark; make one with `SparkTokenizer.load(folder)`.

    `end_id`, `pad_id`, `ret_id`, `user_id`, `bot_id` and `unk_id` are ids of the model; `bos_id` is None when the
    model has no `<s>`. `fingerprint` is the SHA-256 of the model file. `byte_pieces` is 256 when every character can be
    written; `normalizer` is the name of the model's rule for spellings, `identity` for none.
    """

    def __init__(self, model: bytes, where: str | Path = MODEL_FILE) -> None:
        """Read a serialized SentencePiece model; `where` is named in errors. Raises InputError if it is not usable."""
        parsed = _parsed(model, where)
        ids = {piece: index for index, piece in enumerate(parsed.pieces)}
        missing = [piece for piece in REQUIRED if piece not in ids]
        if missing:
            raise InputError(
                f"the tokenizer has no {', '.join(missing)}",
                where=where,
                fix="use the tokenizer of iFlytekSpark, or train one with 'spark13b tokenizer train'",
            )
        self.where = str(where)
        self.model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.vocab_size = len(parsed.pieces)
        self.byte_pieces = len({piece for piece, kind in zip(parsed.pieces, parsed.types, strict=True) if kind == BYTE})
        self.normalizer = parsed.normalizer
        self.end_id, self.pad_id, self.ret_id, self.user_id, self.bot_id = (
            ids[piece] for piece in (END, PAD, RET, USER, BOT)
        )
        self.bos_id = ids.get(BOS)
        self._ids = ids
        self._processor = _processor(model, parsed, ids, where)
        self.unk_id = int(self._processor.unk_id())
        self._table = PieceTable.of(parsed, ret_id=self.ret_id)
        self._hidden = frozenset(ids[piece] for piece in _HIDDEN if piece in ids) | self._table.control

    @classmethod
    def load(cls, folder: str | Path) -> SparkTokenizer:
        """Load `folder/tokenizer.model` (or the model file itself). Raises InputError if it is missing or unusable."""
        path = Path(folder)
        model = path / MODEL_FILE if path.is_dir() else path
        if not model.is_file():
            raise InputError(
                f"there is no {MODEL_FILE} here",
                where=path,
                fix="give --tokenizer the folder that holds it; 'spark13b tokenizer train' makes one",
            )
        return cls(model.read_bytes(), model)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. The empty text has none. Raises ValueError for half a character."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, in order; the same ids as `encode` one by one."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text as an array (n,) int32; long texts are encoded in parts, so that memory is bounded."""
        if not texts:
            return []
        prepared = [_prepare(text) for text in texts]
        try:
            if any(len(text) > _LONGEST for text in prepared):
                return [self._long(text) if len(text) > _LONGEST else self._arrays([text])[0] for text in prepared]
            return self._arrays(prepared)
        except (RuntimeError, TypeError):  # SentencePiece's own words for half a surrogate pair
            if half := half_character("".join(texts)):
                raise ValueError(f"the text holds {half}") from None
            raise

    def encode_after_end(self, text: str) -> Tokens:
        """Token ids of a text that follows `<end>`: without the space that SentencePiece puts before a text."""
        return self._after(END, self.end_id, _prepare(text))

    def _arrays(self, prepared: list[str]) -> list[Tokens]:
        # one thread: parallelism is the caller's, by processes
        return self._processor.encode_as_numpy(prepared, num_threads=1)  # type: ignore[no-any-return]

    def _after(self, mark: str, mark_id: int, prepared: str) -> Tokens:
        (ids,) = self._arrays([mark + prepared])
        return ids[int(np.flatnonzero(ids == mark_id)[0]) + 1 :]

    def _long(self, prepared: str) -> Tokens:
        """The ids of a text in parts: SentencePiece takes 100 bytes and more a character while it encodes one.

        Parts end behind a line's end or before a space, where no piece reaches over; only in a text that has neither
        for that long can the ids differ from those of the whole, and they say the same text.
        """
        ids = []
        for number, part in enumerate(_parts(prepared)):
            ids.append(self._after(RET, self.ret_id, part) if number else self._arrays([part])[0])
        return np.concatenate(ids)

    def decode(self, ids: Iterable[int], skip_special: bool = True, begins: bool = True) -> str:
        """The text of a whole sequence. `skip_special=False` shows `<end>`, `<User>` and the like as they are written.

        Where it does not begin here, but goes on from another text, its first space is kept. Raises ValueError for an
        id outside the vocabulary.
        """
        decoder = self.stream(skip_special, begins)
        return "".join([decoder.push(int(token)) for token in ids]) + decoder.finish()

    def stream(self, skip_special: bool = True, begins: bool = True) -> StreamDecoder:
        """A decoder for ids that arrive one at a time; its pieces joined are `decode` of the whole sequence."""
        return StreamDecoder(self._table, self._hidden if skip_special else frozenset(), begins)

    def ends_in_text(self, ids: Sequence[int]) -> bool:
        """Whether a text goes on behind `ids`: they end in neither a space, nor a control token, nor an unknown id."""
        return len(ids) > 0 and 0 <= ids[-1] < self.vocab_size and self.decode(ids[-1:]) != ""

    def piece(self, token: int) -> str:
        """The piece behind an id as the model spells it, e.g. `▁the` or `<0x0A>`."""
        return self._table.pieces[token]

    def id_of(self, piece: str) -> int | None:
        """The id of a piece as the model spells it, or None."""
        return self._ids.get(piece)

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of one question in the prompt template: the start of an answer."""
        return self.encode(PROMPT_TEMPLATE.format(text))


def _parsed(model: bytes, where: str | Path) -> ModelFile:
    try:
        return ModelFile.parse(model)
    except ValueError:
        raise InputError(
            "this is not a SentencePiece model" if model else "the tokenizer model is empty",
            where=where,
            fix="copy the file again (a Git LFS pointer is no model), or train one with 'spark13b tokenizer train'",
        ) from None


def _processor(model: bytes, parsed: ModelFile, ids: dict[str, int], where: str | Path) -> Any:
    """The SentencePiece processor. `<end>` and the like must be found inside text, which SentencePiece does for
    user-defined symbols only: where the file has them as control symbols, they are turned into such in memory."""
    import sentencepiece

    controls = {ids[piece]: USER_DEFINED for piece in _IN_TEXT if parsed.types[ids[piece]] == CONTROL}
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=with_types(model, controls) if controls else model)
    except RuntimeError as error:
        raise InputError(
            f"SentencePiece refuses this model: {str(error).strip().splitlines()[-1]}",
            where=where,
            fix="copy the file again, or train one with 'spark13b tokenizer train'",
        ) from None


def _parts(text: str) -> Iterator[str]:
    """A long text in parts of at most `_LONGEST` characters."""
    start = 0
    while len(text) - start > _LONGEST:
        end = text.rfind(RET, start + _LONGEST // 2, start + _LONGEST)
        end = end + len(RET) if end >= 0 else text.rfind(" ", start + _LONGEST // 2, start + _LONGEST)
        if end < 0:
            end = start + _LONGEST
        yield text[start:end]
        start = end
    yield text[start:]


def _prepare(text: str) -> str:
    return text.replace("\n", RET).replace("\t", "    ")
