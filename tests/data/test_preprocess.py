"""The two jobs as a whole, against the original's rows (tests/golden/preprocess) and on files that cannot work."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from spark13b.data.clean import clean
from spark13b.data.mindrecord import open_rows, read_manifest, row_info
from spark13b.data.preprocess import Options, preprocess_pretrain, preprocess_sft
from spark13b.data.tokenizer import PROMPT_TEMPLATE, SparkTokenizer
from spark13b.errors import InputError, JobError

GOLDEN = Path(__file__).parents[1] / "golden"
ALPACA = GOLDEN / "preprocess" / "alpaca200.json"
TOKENIZER = SparkTokenizer.load(GOLDEN / "tokenizer")


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batches = list(open_rows(path, 16))
    return np.concatenate([ids for ids, _ in batches]), np.concatenate([mask for _, mask in batches])


def write_json(path: Path, records: list[dict]) -> Path:
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def of_length(tokens: int) -> str:
    """A text of exactly so many tokens."""
    text = "天" * tokens
    while len(TOKENIZER.encode(text)) < tokens:
        text += "天"
    while len(TOKENIZER.encode(text)) > tokens:
        text = text[:-1]
    assert len(TOKENIZER.encode(text)) == tokens
    return text


@pytest.fixture(scope="module")
def original() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "preprocess" / "original_rows.npz"))


def test_pretraining_rows_are_the_originals_and_then_the_tail_that_it_loses(tmp_path, original):
    out = tmp_path / "rows.mindrecord"
    ledger = preprocess_pretrain([ALPACA], out, TOKENIZER, 256).ledger
    ids, mask = read(out)
    theirs = original["pretrain_seq256/input_ids"]
    np.testing.assert_array_equal(ids[: len(theirs)], theirs)
    stream = []
    for record in json.loads(ALPACA.read_text(encoding="utf-8")):
        stream += [*TOKENIZER.encode(clean(record["output"])), TOKENIZER.end_id]
    tail = stream[theirs.size :]
    assert ids[len(theirs) :].tolist() == [tail + [TOKENIZER.pad_id] * (257 - len(tail))]
    assert mask.ravel().tolist() == [1] * len(stream) + [0] * (mask.size - len(stream))
    assert (ledger.read, ledger.kept, ledger.rows, ledger.tokens) == (200, 200, 103, len(stream))
    assert ledger.fill_rate == round(len(stream) / (103 * 257), 6)


def test_instruction_rows_are_the_originals_and_then_the_last_pack_that_it_loses(tmp_path, original):
    out = tmp_path / "rows.mindrecord"
    ledger = preprocess_sft([ALPACA], out, TOKENIZER, 1024).ledger
    ids, mask = read(out)
    theirs, their_mask = original["sft_seq1024/input_ids"], original["sft_seq1024/loss_mask"]
    np.testing.assert_array_equal(ids[: len(theirs)], theirs)
    np.testing.assert_array_equal(mask[: len(theirs)], their_mask)
    assert len(ids) == len(theirs) + 1
    last = json.loads(ALPACA.read_text(encoding="utf-8"))[-1]
    prompt = TOKENIZER.encode(PROMPT_TEMPLATE.format(clean(last["instruction"] + last["input"])))
    answer = [*TOKENIZER.encode(clean(last["output"])), TOKENIZER.end_id]
    end = int(np.flatnonzero(mask[-1])[-1]) + 1
    assert ids[-1][end - len(prompt) - len(answer) : end].tolist() == prompt + answer
    assert not ids[-1][end:].any()
    assert (ledger.rows, ledger.read, ledger.packed, ledger.learned_tokens) == (43, 200, 200, int(mask.sum()))


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_a_corpus_under_a_row_that_divides_evenly_and_one_token_over(tmp_path, tokens, rows):
    text = of_length(tokens - 1) if tokens > 1 else ""
    source = write_json(tmp_path / "a.json", [{"text": text}])
    ledger = preprocess_pretrain([source], tmp_path / "a.mindrecord", TOKENIZER, 31).ledger
    ids, mask = read(tmp_path / "a.mindrecord")
    assert ids.shape == (rows, 32)
    assert ids[mask == 1].tolist() == [*TOKENIZER.encode(text), TOKENIZER.end_id]
    assert (ledger.tokens, ledger.rows) == (tokens, rows)


def test_files_are_read_in_the_order_given(tmp_path):
    sources = []
    for name, text in [("b.txt", "第二\n第三"), ("a.jsonl", '{"text": "第一"}\n')]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        sources.append(tmp_path / name)
    preprocess_pretrain(sources, tmp_path / "rows.mindrecord", TOKENIZER, 100)
    ids, mask = read(tmp_path / "rows.mindrecord")
    text = TOKENIZER.decode(ids[0][mask[0] == 1].tolist(), skip_special=False)
    assert text.replace(" ", "") == "第二<end>第三<end>第一<end>"


def test_the_manifest_says_how_the_rows_were_made(tmp_path):
    out = tmp_path / "rows.mindrecord"
    ledger = preprocess_sft([ALPACA], out, TOKENIZER, 300, options=Options(overlong="truncate")).ledger
    assert names(tmp_path) == [
        "rows.mindrecord",
        "rows.mindrecord.db",
        "rows.mindrecord.json",
        "rows.mindrecord.report.json",
    ]
    manifest = read_manifest(out)
    assert manifest is not None
    assert (manifest.format_version, manifest.kind, manifest.seq_length) == (1, "sft", 300)
    assert manifest.options == {"overlong": "truncate"}
    assert manifest.ledger == ledger
    assert manifest.tokenizer.model_dump() == {
        "path": str(GOLDEN / "tokenizer"),
        "sha256": hashlib.sha256((GOLDEN / "tokenizer" / "tokenizer.model").read_bytes()).hexdigest(),
        "vocab_size": 8000,
        "end_id": 5,
        "pad_id": 0,
    }
    (entry,) = manifest.inputs
    assert (entry.path, entry.size) == (str(ALPACA), ALPACA.stat().st_size)
    assert entry.sha256 == hashlib.sha256(ALPACA.read_bytes()).hexdigest()
    assert row_info(out) == (manifest.rows, 301, ("input_ids", "loss_mask"))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        preprocess_sft([ALPACA], tmp_path / folder / "rows.mindrecord", TOKENIZER, 1024)
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_files_can_be_moved_together(tmp_path):
    preprocess_sft([ALPACA], tmp_path / "old" / "rows.mindrecord", TOKENIZER, 1024)
    (tmp_path / "old").rename(tmp_path / "new")
    assert read(tmp_path / "new" / "rows.mindrecord")[0].shape == (43, 1025)


def test_files_have_the_permissions_of_other_files(tmp_path):
    preprocess_pretrain([ALPACA], tmp_path / "out" / "rows.mindrecord", TOKENIZER, 1024)
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize("overlong", ["truncate", "drop", "split"])
def test_a_long_example_under_each_policy(tmp_path, overlong):
    texts = [("一", "甲"), ("二", of_length(60)), ("三", "乙")]
    source = write_json(tmp_path / "a.json", [{"instruction": asked, "output": said} for asked, said in texts])
    out = tmp_path / "rows.mindrecord"
    ledger = preprocess_sft([source], out, TOKENIZER, 31, options=Options(overlong=overlong)).ledger
    ids, mask = read(out)
    short = [*TOKENIZER.encode("甲"), TOKENIZER.end_id, *TOKENIZER.encode("乙"), TOKENIZER.end_id]
    long = [*TOKENIZER.encode(of_length(60)), TOKENIZER.end_id]
    prompt = len(TOKENIZER.prompt_ids("二"))
    kept = {"truncate": 32 - prompt, "drop": 0, "split": len(long)}[overlong]
    assert ids[mask == 1].tolist() == short[:3] + long[:kept] + short[3:]
    assert (ledger.read, ledger.kept + ledger.dropped) == (3, 3)
    assert (ledger.truncated, ledger.dropped, ledger.split) == (
        int(overlong == "truncate"),
        int(overlong == "drop"),
        int(overlong == "split"),
    )
    assert ledger.lost_tokens == {"truncate": prompt + 61 - 32, "drop": prompt + 61, "split": 0}[overlong]


def test_a_long_example_is_an_error_that_names_it_and_leaves_nothing(tmp_path):
    source = write_json(tmp_path / "a.json", [{"instruction": "一", "output": of_length(60)}])
    with pytest.raises(InputError, match="tokens") as caught:
        preprocess_sft([source], tmp_path / "rows.mindrecord", TOKENIZER, 31)
    assert (caught.value.where, caught.value.line) == (str(source), 2)
    assert names(tmp_path) == ["a.json"]


def test_a_job_that_keeps_nothing_is_an_error(tmp_path):
    source = write_json(tmp_path / "a.json", [{"instruction": "一", "output": of_length(60)}])
    with pytest.raises(InputError, match="no row came out"):
        preprocess_sft([source], tmp_path / "rows.mindrecord", TOKENIZER, 31, options=Options(overlong="drop"))
    assert names(tmp_path) == ["a.json"]


def test_an_error_halfway_leaves_nothing_behind_and_an_old_output_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("spark13b.data.encoding._BATCH_CHARACTERS", 10)
    good = [{"text": of_length(300)}] * 20
    out = tmp_path / "rows.mindrecord"
    preprocess_pretrain([write_json(tmp_path / "good.json", good)], out, TOKENIZER, 15)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(good)[:-20], encoding="utf-8")
    with pytest.raises(InputError, match="cut off after 19 whole records"):
        preprocess_pretrain([bad], out, TOKENIZER, 15, force=True)
    bad.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_force_replaces_all_files_of_the_output(tmp_path):
    out = tmp_path / "rows.mindrecord"
    preprocess_sft([ALPACA], out, TOKENIZER, 1024)
    for piece in names(tmp_path):
        with pytest.raises(InputError, match="already exists"):
            preprocess_pretrain([ALPACA], out, TOKENIZER, 256)
        preprocess_pretrain([ALPACA], out, TOKENIZER, 256, force=True)
        assert row_info(out).row_length == 257
        (tmp_path / piece).rename(tmp_path / "aside")
        for name in names(tmp_path):
            if name not in (piece, "aside"):
                (tmp_path / name).unlink()
        (tmp_path / "aside").rename(tmp_path / piece)


class Refusing:
    """A tokenizer that must not be used: the error must come first."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(name)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("rows:1.mindrecord", "has : in it"),
        ("a.json", "already exists|one of the inputs"),
        ("folder", "is a folder"),
        ("a.json/rows.mindrecord", "folder is a file"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_work(tmp_path, output, words):
    source = write_json(tmp_path / "a.json", [{"text": "a"}])
    (tmp_path / "folder").mkdir()
    for force in (False, True):
        with pytest.raises(InputError, match=words):
            preprocess_pretrain([source], tmp_path / output, Refusing(), 31, force=force)
    assert source.read_text(encoding="utf-8")
    assert names(tmp_path) == ["a.json", "folder"]


def test_a_sidecar_that_is_an_input_is_not_overwritten(tmp_path):
    source = write_json(tmp_path / "rows.json", [{"text": "a"}])
    with pytest.raises(InputError, match="one of the inputs"):
        preprocess_pretrain([source], tmp_path / "rows", Refusing(), 31, force=True)


@pytest.mark.parametrize("seq_length", [0, -1, (1 << 20) + 1])
def test_a_row_length_that_cannot_be_is_refused(tmp_path, seq_length):
    with pytest.raises(InputError, match="--seq-length"):
        preprocess_pretrain([ALPACA], tmp_path / "rows.mindrecord", Refusing(), seq_length)
    assert names(tmp_path) == []


def test_the_longest_row_can_be_written_and_read(tmp_path):
    preprocess_pretrain([ALPACA], tmp_path / "rows.mindrecord", TOKENIZER, 1 << 20)
    ids, mask = read(tmp_path / "rows.mindrecord")
    assert ids.shape == (1, (1 << 20) + 1)
    assert mask.sum() == 26379


def test_a_tokenizer_with_other_ids_gives_other_rows(tmp_path):
    proto = model_pb2.ModelProto()
    proto.ParseFromString((GOLDEN / "tokenizer" / "tokenizer.model").read_bytes())
    proto.pieces[5].piece, proto.pieces[8].piece = "<Bot>", "<end>"
    source = write_json(tmp_path / "a.json", [{"text": "天"}])
    preprocess_pretrain([source], tmp_path / "rows.mindrecord", SparkTokenizer(proto.SerializeToString()), 7)
    ids, mask = read(tmp_path / "rows.mindrecord")
    assert ids[0][int(mask[0].sum()) - 1] == 8


def test_a_full_disk_is_a_failed_job_that_leaves_nothing(tmp_path, monkeypatch):
    def write(self: object, rows: dict) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("spark13b.data.mindrecord_writer.MindRecordWriter.write", write)
    with pytest.raises(JobError, match="the disk is full") as caught:
        preprocess_pretrain([ALPACA], tmp_path / "rows.mindrecord", TOKENIZER, 256)
    assert "free some space" in caught.value.fix
    assert names(tmp_path) == []


def test_a_map_of_a_field_that_no_record_has_is_refused_though_another_could_be_read(tmp_path):
    records = [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b", "answer": "c"}]
    source, out = write_json(tmp_path / "a.json", records), tmp_path / "rows.mindrecord"
    with pytest.raises(InputError, match="no record has the field 'anwser'") as caught:
        preprocess_sft([source], out, TOKENIZER, 64, options=Options(names={"output": "anwser"}))
    assert (caught.value.where, caught.value.fix) == ("--map output=anwser", "did you mean 'answer'?")
    assert names(tmp_path) == ["a.json"]
    preprocess_sft([source], out, TOKENIZER, 64, options=Options(names={"output": "answer"}))  # one has it
