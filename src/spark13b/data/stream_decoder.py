"""From token ids to text, one id at a time: what SentencePiece's `decode` gives, handed out once it is decided."""

from __future__ import annotations

from dataclasses import dataclass

from spark13b.data.model_file import BYTE, CONTROL, UNKNOWN, ModelFile

_SPACE = "\u2581"  # how SentencePiece writes a space inside pieces
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class PieceTable:
    """What decoding needs of a model: the text of each id, its byte value if it is one, and how a text begins."""

    pieces: list[str]
    surface: list[str]  # spaces as spaces, <ret> as a newline
    byte: list[int]  # -1 for pieces that are not bytes
    control: frozenset[int]
    strips_first_space: bool
    strips_all_leading_spaces: bool

    @classmethod
    def of(cls, model: ModelFile, ret_id: int) -> PieceTable:
        """The table of a model whose `<ret>` is `ret_id`."""
        surface = [piece.replace(_SPACE, " ") for piece in model.pieces]
        surface[ret_id] = "\n"
        byte = [-1] * len(surface)
        control = []
        for index, kind in enumerate(model.types):
            if kind == BYTE:
                byte[index] = int(model.pieces[index][3:5], 16)  # <0x0A>
            elif kind == UNKNOWN:
                surface[index] = model.unk_surface
            elif kind == CONTROL and index != ret_id:
                control.append(index)
        return cls(
            model.pieces,
            surface,
            byte,
            frozenset(control),
            strips_first_space=model.add_dummy_prefix or model.remove_extra_whitespaces,
            strips_all_leading_spaces=model.remove_extra_whitespaces,
        )


class StreamDecoder:
    """Text of ids pushed one at a time. Bytes of a character that is not complete yet are held back.

    Follows `SentencePieceProcessor::Decode` (sentencepiece 0.2): the space that begins a text is the model's own and
    is dropped; each byte that belongs to no UTF-8 character becomes U+FFFD, here only once that is certain.

    Unless the text `begins` here: where it goes on from another one, a space is the text's.
    """

    def __init__(self, table: PieceTable, hidden: frozenset[int], begins: bool = True) -> None:
        self._table = table
        self._hidden = hidden
        self._held = bytearray()
        self._strips = begins and table.strips_first_space
        self._at_start = self._strips

    def push(self, token: int) -> str:
        """The text that `token` decides: often its own, nothing for part of a character, a whole character at its end.

        Raises ValueError for an id outside the vocabulary.
        """
        table = self._table
        if not 0 <= token < len(table.pieces):
            raise ValueError(f"token id {token} is outside the vocabulary of {len(table.pieces)}")
        if token in self._hidden:
            return ""
        if table.byte[token] >= 0:
            self._held.append(table.byte[token])
            text = self._decided_characters()
        else:
            text = self._flush() + self._surface(token)
        return text

    def finish(self) -> str:
        """The end of the text: bytes still held back can become no character any more."""
        text = self._flush()
        self._at_start = self._strips
        return text

    def _surface(self, token: int) -> str:
        text = self._table.surface[token]
        if self._at_start:
            if self._table.pieces[token].startswith(_SPACE):
                self._at_start = self._table.strips_all_leading_spaces and len(text) == 1
                return text[1:]
            self._at_start = False
        return text

    def _decided_characters(self) -> str:
        """Take every character, and every byte that can be part of none, off the front of the held bytes."""
        text = ""
        while self._held:
            need = _character_length(self._held)
            if need == 0:
                text += _REPLACEMENT
                del self._held[0]
            elif need > len(self._held):
                break
            else:
                text += self._held[:need].decode("utf-8")
                del self._held[:need]
        if text:
            self._at_start = False
        return text

    def _flush(self) -> str:
        if not self._held:
            return ""
        text = _REPLACEMENT * len(self._held)  # a lead byte with too few continuations: each counts alone
        self._held.clear()
        self._at_start = False
        return text


def _character_length(held: bytearray) -> int:
    """Bytes of the UTF-8 character that `held` begins with, or 0 when no continuation can make it one (RFC 3629)."""
    lead = held[0]
    if lead < 0x80:
        return 1
    low, high = 0x80, 0xBF  # of the second byte
    if 0xC2 <= lead <= 0xDF:
        need = 2
    elif 0xE0 <= lead <= 0xEF:
        need = 3
        if lead == 0xE0:
            low = 0xA0
        elif lead == 0xED:
            high = 0x9F
    elif 0xF0 <= lead <= 0xF4:
        need = 4
        if lead == 0xF0:
            low = 0x90
        elif lead == 0xF4:
            high = 0x8F
    else:
        return 0
    if len(held) > 1 and not low <= held[1] <= high:
        return 0
    if any(not 0x80 <= byte <= 0xBF for byte in held[2:need]):
        return 0
    return need
