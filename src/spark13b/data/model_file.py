"""What is read from, and changed in, a serialized SentencePiece model: its pieces and a few rules.

The file is a protobuf `ModelProto` (sentencepiece_model.proto). It is read by hand because MindSpore's own generated
code needs protobuf's slow implementation: whoever imports protobuf first with the fast one breaks `import mindspore`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # ModelProto.SentencePiece.Type

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC = 1, 2, 3  # fields of ModelProto
_PIECE, _TYPE = 1, 3  # of SentencePiece
_UNK_SURFACE = 44  # of TrainerSpec
_NORMALIZER_NAME, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES = 1, 3, 4  # of NormalizerSpec


@dataclass
class ModelFile:
    """A model's pieces with their types, and the rules that decoding needs; the defaults are protobuf's."""

    pieces: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    unk_surface: str = " \u2047 "
    normalizer: str = ""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True

    @classmethod
    def parse(cls, model: bytes) -> ModelFile:
        """Read a serialized model. Raises ValueError when it is not one."""
        found = cls()
        for number, body in _messages(model):
            if number == _PIECES:
                piece, kind = "", NORMAL
                for key, value in _fields(body):
                    if key == _PIECE:
                        piece = _text(value)
                    elif key == _TYPE and isinstance(value, int):
                        kind = value
                found.pieces.append(piece)
                found.types.append(kind)
            elif number == _TRAINER_SPEC:
                for key, value in _fields(body):
                    if key == _UNK_SURFACE:
                        found.unk_surface = _text(value)
            elif number == _NORMALIZER_SPEC:
                for key, value in _fields(body):
                    if key == _NORMALIZER_NAME:
                        found.normalizer = _text(value)
                    elif key == _ADD_DUMMY_PREFIX:
                        found.add_dummy_prefix = bool(value)
                    elif key == _REMOVE_EXTRA_WHITESPACES:
                        found.remove_extra_whitespaces = bool(value)
        if not found.pieces:
            raise ValueError("the model has no pieces")
        return found


def with_types(model: bytes, types: Mapping[int, int]) -> bytes:
    """The serialized model with other types for the pieces whose ids are given."""
    out = bytearray()
    index = 0
    for number, body in _messages(model):
        if number == _PIECES:
            if index in types:  # of a field that comes twice, protobuf takes the last
                body = body + bytes([_TYPE << 3 | _VARINT, types[index]])
            index += 1
        out += _varint(number << 3 | _BYTES) + _varint(len(body)) + body
    return bytes(out)


def _messages(model: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a ModelProto: all are messages."""
    for number, body in _fields(model):
        if not isinstance(body, bytes):
            raise ValueError("not a ModelProto")
        yield number, body


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Each field's number and value. Raises ValueError where `data` is no protobuf message."""
    at, end = 0, len(data)
    try:
        while at < end:
            key, at = _read_varint(data, at)
            wire = key & 7
            value: int | bytes
            if wire == _VARINT:
                value, at = _read_varint(data, at)
            else:
                if wire == _BYTES:
                    size, at = _read_varint(data, at)
                elif wire in (_FIXED32, _FIXED64):
                    size = 4 if wire == _FIXED32 else 8
                else:
                    raise ValueError("unknown wire type")
                value = data[at : at + size]
                at += size
                if at > end:
                    raise ValueError("cut off")
            yield key >> 3, value
    except IndexError:
        raise ValueError("cut off") from None


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value &= 0x7F
    for shift in range(7, 70, 7):
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
    raise ValueError("a number of more than 10 bytes")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(value: int | bytes) -> str:
    if isinstance(value, int):
        raise ValueError("a number where a text should be")
    return value.decode("utf-8")
