"""Reading SentencePiece models by hand, against protobuf."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from spark13b.data.model_file import ModelFile, with_types

MODEL = (Path(__file__).parents[1] / "golden" / "tokenizer" / "tokenizer.model").read_bytes()


def proto_of(model: bytes) -> model_pb2.ModelProto:
    proto = model_pb2.ModelProto()
    proto.ParseFromString(model)
    return proto


def test_pieces_types_and_rules_are_protobufs():
    parsed, proto = ModelFile.parse(MODEL), proto_of(MODEL)
    assert parsed.pieces == [piece.piece for piece in proto.pieces]
    assert parsed.types == [piece.type for piece in proto.pieces]
    assert (parsed.unk_surface, parsed.normalizer) == (proto.trainer_spec.unk_surface, "identity")


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.floats(width=32), st.integers(1, 6)), min_size=1),
    st.booleans(),
    st.booleans(),
    st.text(st.characters(codec="utf-8"), max_size=200),
)
def test_any_model_is_read_as_protobuf_reads_it(pieces, prefix, squeeze, surface):
    proto = model_pb2.ModelProto()
    for piece, score, kind in pieces:
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.normalizer_spec.add_dummy_prefix = prefix
    proto.normalizer_spec.remove_extra_whitespaces = squeeze
    proto.trainer_spec.unk_surface = surface
    parsed = ModelFile.parse(proto.SerializeToString())
    assert list(zip(parsed.pieces, parsed.types, strict=True)) == [(piece, kind) for piece, _, kind in pieces]
    assert (parsed.add_dummy_prefix, parsed.remove_extra_whitespaces) == (prefix, squeeze)
    assert parsed.unk_surface == surface


def test_what_a_model_leaves_out_is_protobufs_default():
    proto = model_pb2.ModelProto()
    proto.pieces.add(piece="a")
    parsed = ModelFile.parse(proto.SerializeToString())
    assert parsed.types == [model_pb2.ModelProto.SentencePiece.NORMAL]
    assert parsed.unk_surface == proto.trainer_spec.unk_surface
    assert (parsed.add_dummy_prefix, parsed.remove_extra_whitespaces) == (True, True)


def test_changed_types_are_the_only_change():
    changed = with_types(MODEL, {5: 3, 7999: 5})
    proto = proto_of(MODEL)
    proto.pieces[5].type, proto.pieces[7999].type = 3, 5
    assert proto_of(changed) == proto
    assert with_types(MODEL, {}) == MODEL
    assert sentencepiece.SentencePieceProcessor(model_proto=changed).is_control(5)


@pytest.mark.parametrize("content", [b"", b"\x0a", MODEL[:-1], MODEL[:5001], b"version https://git-lfs", b"\x0f\x01"])
def test_what_is_no_model_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"\w"):
        ModelFile.parse(content)
