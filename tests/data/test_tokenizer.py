"""The tokenizer against the original's ids (tests/golden) and against SentencePiece itself."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from spark13b.config.template import PROMPT_TEMPLATE
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
CASES = json.loads((GOLDEN / "encode_decode.json").read_text(encoding="utf-8"))
MODEL = (GOLDEN / "tokenizer.model").read_bytes()


@pytest.fixture(scope="module")
def tokenizer() -> SparkTokenizer:
    return SparkTokenizer.load(GOLDEN)


def changed(**types: int | None) -> bytes:
    """The golden model with pieces of another type, or renamed away (None)."""
    proto = model_pb2.ModelProto()
    proto.ParseFromString(MODEL)
    for piece in proto.pieces:
        name = piece.piece.strip("<>")
        if name in types:
            wanted = types[name]
            if wanted is None:
                piece.piece = f"<no {name}>"
            else:
                piece.type = wanted
    return proto.SerializeToString()


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"]))
def test_ids_are_the_originals(tokenizer, case):
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert tokenizer.encode_batch([case["text"], "x", case["text"]])[2] == case["ids"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"]))
def test_decoding_is_right_where_the_originals_is_not(tokenizer, case):
    assert tokenizer.decode(case["ids"], skip_special=False) == case["sp_decode"].replace("<ret>", "\n")


def test_special_tokens_are_dropped_and_the_text_between_them_stays(tokenizer):
    ids = tokenizer.encode("<User> 你好\nhello world<end><Bot> 今天")
    assert tokenizer.decode([0, 1, *ids, 2, 5]) == "你好\nhello world 今天"
    assert tokenizer.decode(ids, skip_special=False) == "<User> 你好\nhello world<end><Bot> 今天"


def test_ids_of_special_tokens_are_read_from_the_model(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id, tokenizer.end_id) == (0, 1, 3, 5)
    assert (tokenizer.ret_id, tokenizer.user_id, tokenizer.bot_id, tokenizer.vocab_size) == (6, 7, 8, 8000)
    assert tokenizer.fingerprint == hashlib.sha256(MODEL).hexdigest()
    proto = model_pb2.ModelProto()
    proto.ParseFromString(MODEL)
    proto.pieces[5].piece, proto.pieces[8].piece = "<Bot>", "<end>"
    moved = SparkTokenizer(proto.SerializeToString())
    assert (moved.end_id, moved.bot_id) == (8, 5)


def test_missing_special_tokens_are_all_named():
    with pytest.raises(InputError) as caught:
        SparkTokenizer(changed(end=None, Bot=None), "here/tokenizer.model")
    assert "<end>, <Bot>" in caught.value.what
    assert "<User>" not in caught.value.what
    assert caught.value.where == "here/tokenizer.model"


def test_control_symbols_are_found_in_text_as_user_defined_ones_are(tokenizer):
    controls = SparkTokenizer(changed(end=3, ret=3, User=3, Bot=3))
    for text in [PROMPT_TEMPLATE.format("你好\nhello  world"), "a<end>b", "<ret>", "x <end> y"]:
        assert controls.encode(text) == tokenizer.encode(text)
        assert controls.decode(controls.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        shown = controls.decode(controls.encode(text), skip_special=False)
        assert shown == tokenizer.decode(tokenizer.encode(text), skip_special=False)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"\xff" * 99])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError) as caught:
        SparkTokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.model"):
        SparkTokenizer.load(tmp_path / "none")


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.integers(0, 7999), st.integers(39, 294), st.sampled_from([5, 6, 7, 8, 296])), max_size=40))
def test_decoding_equals_sentencepiece_for_any_ids(ids):
    tokenizer, peer = _pair()
    controls = [0, 1, 2]
    ids = [token for token in ids if token not in controls]
    assert tokenizer.decode(ids, skip_special=False) == peer.decode(ids).replace("<ret>", "\n")


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.integers(0, 7999), st.integers(39, 294)), max_size=40))
def test_streamed_pieces_joined_are_the_whole_text(ids):
    tokenizer, _ = _pair()
    stream = tokenizer.stream()
    assert "".join([stream.push(token) for token in ids]) + stream.finish() == tokenizer.decode(ids)


def test_a_text_that_goes_on_from_another_keeps_its_first_space():
    tokenizer, _ = _pair()
    ids = tokenizer.encode("the weather is nice")
    for cut in range(1, len(ids)):
        assert tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:], begins=False) == "the weather is nice"


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\u2581<"), max_size=60))
def test_text_comes_back_up_to_the_spaces_that_the_model_squeezes(text):
    tokenizer, _ = _pair()
    text = "".join(text.split(" ")).replace("\t", "")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_character_in_bytes_appears_whole_when_its_last_byte_arrives(tokenizer):
    stream = tokenizer.stream()
    ids = tokenizer.encode("🦄x")
    assert [stream.push(token) for token in ids] == ["", "", "", "", "🦄", "x"]
    assert stream.finish() == ""


def test_an_unfinished_character_becomes_replacement_only_at_the_end(tokenizer):
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokenizer.encode("🦄")[:4]] == [""] * 4
    assert stream.finish() == "\ufffd" * 3


def test_streaming_costs_the_same_late_as_early(tokenizer):
    stream = tokenizer.stream()
    ids = tokenizer.encode("今天天气很好，🦄 hello world。" * 10)

    def seconds(rounds: int) -> float:
        start = time.thread_time()
        for _ in range(rounds):
            for token in ids:
                stream.push(token)
        return time.thread_time() - start

    seconds(20)
    early = min(seconds(20) for _ in range(5))
    seconds(400)
    late = min(seconds(20) for _ in range(5))
    assert late < 5 * early


def test_half_a_surrogate_pair_is_a_value_error(tokenizer):
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["a", text])):
        with pytest.raises(ValueError, match=r"half a character: \\ud83d"):
            encode("a\ud83d")


def test_an_id_outside_the_vocabulary_is_refused(tokenizer):
    with pytest.raises(ValueError, match="8000"):
        tokenizer.decode([8000])


def _pair() -> tuple[SparkTokenizer, sentencepiece.SentencePieceProcessor]:
    if not _PAIR:
        _PAIR.append((SparkTokenizer(MODEL), sentencepiece.SentencePieceProcessor(model_proto=MODEL)))
    return _PAIR[0]


_PAIR: list[tuple[SparkTokenizer, sentencepiece.SentencePieceProcessor]] = []
