"""Training tokenizers: the official layout, the same bytes again, small corpora, and outputs that cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from spark13b.data import tokenizer_training
from spark13b.data.model_file import BYTE, ModelFile
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.data.tokenizer_check import SAMPLES, check_tokenizer
from spark13b.data.tokenizer_training import train_tokenizer
from spark13b.errors import InputError, JobError

GOLDEN = Path(__file__).parents[1] / "golden"
ALPACA = GOLDEN / "preprocess" / "alpaca200.json"
OFFICIAL = ModelFile.parse((GOLDEN / "tokenizer" / "tokenizer.model").read_bytes())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tok"
    train_tokenizer([ALPACA], folder, 3000)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_layout_is_the_official_one(trained):
    model = ModelFile.parse((trained / "tokenizer.model").read_bytes())
    assert len(model.pieces) == 3000
    assert model.pieces[:295] == OFFICIAL.pieces[:295]
    assert model.types[:295] == OFFICIAL.types[:295]
    assert BYTE not in model.types[295:]
    assert (model.normalizer, model.add_dummy_prefix, model.remove_extra_whitespaces) == ("identity", True, True)
    vocab = (trained / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in vocab] == model.pieces


def test_text_comes_back_whatever_it_is(trained):
    tokenizer = SparkTokenizer.load(trained)
    for record in json.loads(ALPACA.read_text(encoding="utf-8")):
        text = " ".join(record["output"].replace("\t", "    ").split(" ")).strip()
        assert tokenizer.decode(tokenizer.encode(text)) == " ".join(filter(None, text.split(" ")))
    for text in (*SAMPLES, "ꙮ 𓀀 𝔘𝔫𝔦"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.unk_id not in tokenizer.encode(text)


def test_frequent_text_has_long_pieces(trained):
    characters = tokens = 0
    tokenizer = SparkTokenizer.load(trained)
    for record in json.loads(ALPACA.read_text(encoding="utf-8")):
        characters += len(record["output"])
        tokens += len(tokenizer.encode(record["output"]))
    assert characters / tokens > 1.3


def test_the_same_input_gives_the_same_bytes_under_any_name(trained, tmp_path):
    train_tokenizer([ALPACA], tmp_path / "deeper" / "another", 3000)
    for name in ("tokenizer.model", "tokenizer.vocab"):
        assert (tmp_path / "deeper" / "another" / name).read_bytes() == (trained / name).read_bytes()


def test_a_sample_is_the_same_for_the_same_seed_only(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_training, "_SAMPLE", 50)
    prints = [
        train_tokenizer([ALPACA], tmp_path / name, 600, seed=seed).fingerprint
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("vocab_size", [320, 500, 1000])
def test_a_vocabulary_smaller_than_the_number_of_characters_works(tmp_path, vocab_size):
    tokenizer = train_tokenizer([ALPACA], tmp_path / "tok", vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.decode(tokenizer.encode("今天，彧赟 hello")) == "今天，彧赟 hello"


@pytest.mark.parametrize("lines", [["a"], ["你好，世界", "hello hello"]])
def test_a_tiny_corpus_gives_as_many_pieces_as_it_can(tmp_path, lines):
    tokenizer = train_tokenizer([write(tmp_path / "tiny.txt", *lines)], tmp_path / "tok", 60000)
    assert 295 < tokenizer.vocab_size < 330
    assert tokenizer.decode(tokenizer.encode("你好 world")) == "你好 world"


def test_every_text_field_is_learned_cleaned_as_preprocess_does(tmp_path):
    record = {"instruction": "天地", "history": [["玄黄", "宇宙"]], "output": "洪荒\\n日月\r\n盈昃", "id": "辰宿"}
    source = write(tmp_path / "a.jsonl", *[json.dumps(record)] * 50)
    tokenizer = train_tokenizer([source], tmp_path / "tok", 500)
    pieces = [tokenizer.piece(token) for token in range(295, tokenizer.vocab_size)]
    assert set("".join(pieces)) == set("▁天地玄黄宇宙洪荒日月盈昃")  # no backslash, no n, no <ret>, no id


def test_reserved_characters_and_long_lines_lose_no_text(tmp_path):
    source = write(tmp_path / "a.txt", "甲乙▁丙丁▅戊己" * 2000 + "子丑寅卯" * 2000)
    tokenizer = train_tokenizer([source], tmp_path / "tok", 400)
    assert all(tokenizer.id_of(character) is not None for character in "甲乙丙丁戊己子丑寅卯")


def test_sentencepiece_is_silent_and_its_words_go_to_the_log(tmp_path, capfd):
    said: list[str] = []
    train_tokenizer([ALPACA], tmp_path / "quiet", 600)
    assert capfd.readouterr() == ("", "")
    train_tokenizer([ALPACA], tmp_path / "loud", 600, log=said.append)
    assert capfd.readouterr() == ("", "")
    assert any("Saving model" in line for line in said)


@pytest.mark.parametrize("vocab_size", [-1, 0, 319, 1_000_001])
def test_a_vocabulary_size_that_cannot_be_is_refused(tmp_path, vocab_size):
    with pytest.raises(InputError, match=r"--vocab-size must be from 320") as caught:
        train_tokenizer([ALPACA], tmp_path / "tok", vocab_size)
    assert "295 pieces" in caught.value.fix
    assert names(tmp_path) == []


def test_input_without_text_is_refused(tmp_path):
    source = write(tmp_path / "a.jsonl", '{"id": "x", "n": 5, "text": " \\n "}')
    with pytest.raises(InputError, match="no text to learn from"):
        train_tokenizer([source], tmp_path / "tok", 400)
    assert names(tmp_path) == ["a.jsonl"]


def test_an_existing_output_is_replaced_only_by_force_and_only_if_it_is_a_tokenizer(tmp_path):
    folder = tmp_path / "tok"
    folder.mkdir()
    train_tokenizer([ALPACA], folder, 400)
    first = (folder / "tokenizer.model").read_bytes()
    with pytest.raises(InputError, match="already exists"):
        train_tokenizer([ALPACA], folder, 500)
    assert (folder / "tokenizer.model").read_bytes() == first
    train_tokenizer([ALPACA], folder, 500, force=True)
    assert SparkTokenizer.load(folder).vocab_size == 500
    write(folder / "thesis.txt", "mine")
    with pytest.raises(InputError, match=r"holds other things: thesis\.txt"):
        train_tokenizer([ALPACA], folder, 500, force=True)
    with pytest.raises(InputError, match="the output is a file"):
        train_tokenizer([ALPACA], folder / "thesis.txt", 500, force=True)
    assert names(folder) == ["thesis.txt", "tokenizer.model", "tokenizer.vocab"]
    assert names(tmp_path) == ["tok"]


def test_a_failing_sentencepiece_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_training, "_CHILD", "raise RuntimeError('it cannot')")
    with pytest.raises(JobError, match="could not train: RuntimeError: it cannot"):
        train_tokenizer([ALPACA], tmp_path / "tok", 400)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(OSError, match="No such file"):
        train_tokenizer([ALPACA], tmp_path / "tok", 400)
    assert names(tmp_path) == []


def test_the_check_of_a_trained_tokenizer_finds_nothing(trained):
    report = check_tokenizer(trained)
    assert report.problem is None
    assert (report.pieces, report.byte_pieces, report.normalizer) == (3000, 256, "identity")
    assert report.special_tokens == {
        "<pad>": 0,
        "<s>": 1,
        "</s>": 2,
        "<unk>": 3,
        "<end>": 5,
        "<ret>": 6,
        "<User>": 7,
        "<Bot>": 8,
    }
    assert {trip.fidelity for trip in report.round_trips} == {"exact"}
