"""Whole jobs at some size: processes, shards, what is left out or held out, and going on after the end of a process."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spark13b.data import blocks
from spark13b.data.inspecting import look_into, verify_rows
from spark13b.data.job_folder import JobFolder
from spark13b.data.manifest import read_manifest
from spark13b.data.mindrecord import open_rows, row_info
from spark13b.data.preprocess import Options, Way, preprocess_pretrain, preprocess_sft
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError, JobError

GOLDEN = Path(__file__).parents[1] / "golden"
ALPACA = GOLDEN / "preprocess" / "alpaca200.json"
TOKENIZER = SparkTokenizer.load(GOLDEN / "tokenizer")
RECORDS = json.loads(ALPACA.read_text(encoding="utf-8"))
ENVIRONMENT = {**os.environ, "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 MB in two files, in six blocks."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, seed in (("a.jsonl", 1), ("b.jsonl.gz", 2)):
        random = np.random.default_rng(seed)
        lines = []
        for number in range(11_000):
            record = RECORDS[random.integers(len(RECORDS))]
            fields = {"instruction": f"{number}. {record['instruction']}", "output": record["output"]}
            lines.append(json.dumps(fields, ensure_ascii=False))
        data = "\n".join(lines).encode()
        (folder / name).write_bytes(gzip.compress(data, 1, mtime=0) if name.endswith(".gz") else data)
    return folder


def command(corpus: Path, output: Path, *options: object) -> list[str]:
    words = ["preprocess", "sft", "--input", corpus, "--output", output, "--tokenizer", GOLDEN / "tokenizer"]
    words += [
        "--seq-length",
        511,
        "--shard-size",
        1,
        "--packing",
        "best-fit",
        "--deduplicate",
        "--workers",
        2,
        *options,
    ]
    return [sys.executable, "-m", "spark13b", *map(str, words)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


OPTIONS = Options(packing="best-fit", deduplicate=True, held_out=0.1, shard_bytes=1 << 20)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process that was left alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    preprocess_sft([corpus], folder / "rows.mindrecord", TOKENIZER, 511, options=OPTIONS, way=Way(workers=1))
    return folder


def test_several_files_are_one_set_for_every_reader(undisturbed):
    from mindspore.dataset import MindDataset

    output = undisturbed / "rows.mindrecord"
    manifest = read_manifest(output)
    assert manifest is not None
    assert len(manifest.shards) > 3
    assert not output.exists()
    names = [f"rows.mindrecord{number}" for number in range(len(manifest.shards))]
    assert [path.name for path in sorted(undisturbed.glob("rows.mindrecord?"))] == names
    assert row_info(output) == row_info(undisturbed / names[2]) == (sum(manifest.shards), 512, manifest_columns())
    whole = np.concatenate([ids for ids, _ in open_rows(output, 64)])
    theirs = MindDataset([str(undisturbed / name) for name in names], shuffle=False, num_parallel_workers=2)
    read = [row["input_ids"] for row in theirs.create_dict_iterator(num_epochs=1, output_numpy=True)]
    np.testing.assert_array_equal(np.stack(read), whole)
    order = np.random.default_rng(0).permutation(len(whole))[:50]
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in open_rows(output, 7, order=order)]), whole[order])
    assert verify_rows(output).rows == len(whole)
    assert read_manifest(undisturbed / names[2]) == manifest


def manifest_columns() -> tuple[str, ...]:
    return ("input_ids", "loss_mask")


def test_every_record_has_one_fate_and_the_same_on_each_side(undisturbed):
    manifest, held = (read_manifest(undisturbed / name) for name in ("rows.mindrecord", "rows.eval.mindrecord"))
    assert manifest is not None
    assert held is not None
    ledger = manifest.ledger
    assert ledger.read == 22_000 == ledger.kept + ledger.dropped + ledger.duplicates + ledger.bad + ledger.held_out
    assert ledger.held_out == held.ledger.read == held.ledger.kept
    assert 0.09 < ledger.held_out / (ledger.read - ledger.duplicates) < 0.11
    assert ledger.fill_rate > 0.98
    texts = [
        {
            part
            for number in range(10)
            for part in look_into(undisturbed / name, range(number, number + 1)).shown[0].parts
        }
        for name in ("rows.mindrecord", "rows.eval.mindrecord")
    ]
    answers = [{part.text for part in found if not part.learned} for found in texts]
    assert not answers[0] & answers[1]


def test_two_processes_killed_in_the_middle_and_begun_again_write_the_same_bytes(corpus, undisturbed, tmp_path):
    output = tmp_path / "rows.mindrecord"
    words = command(corpus, output, "--eval-fraction", 0.1)
    state = tmp_path / "rows.mindrecord.partial" / "state.npz"
    for _ in range(5):  # once more if it was done before it could be killed
        for path in tmp_path.iterdir():
            path.unlink()
        process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not state.exists() and process.poll() is None:
            time.sleep(0.005)
        children = children_of(process.pid) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            break
    assert process.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.mindrecord.partial"]
    wait_for_the_end_of(children)
    other = subprocess.run(
        [*words, "--packing", "greedy"], env=ENVIRONMENT, capture_output=True, text=True
    )  # another job does not go on from here
    assert other.returncode == 2
    assert "begun with another packing: best-fit then, greedy now" in other.stderr
    again = subprocess.run([*words, "--resume"], env=ENVIRONMENT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "going on:" in again.stderr
    assert contents(tmp_path) == contents(undisturbed)


def children_of(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def wait_for_the_end_of(pids: list[int]) -> None:
    import psutil

    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=100)
    assert not alive


class Stopped(Exception):
    """What ends a job here."""


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let reading end with an error after `count` blocks."""
    real = blocks.read_blocks

    def limited(*arguments: object) -> Iterator[blocks.Block]:
        for number, block in enumerate(real(*arguments)):  # type: ignore[arg-type]
            if number == count:
                raise Stopped
            yield block

    monkeypatch.setattr("spark13b.data.sources.read_blocks", limited)


STREAM = Options(documents=True, shard_bytes=1 << 20)


@pytest.fixture(scope="module")
def stream(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a job that joins the texts of a.jsonl and was left alone."""
    folder = tmp_path_factory.mktemp("stream")
    preprocess_pretrain([corpus / "a.jsonl"], folder / "rows.mindrecord", TOKENIZER, 1000, options=STREAM)
    return contents(folder)


@pytest.mark.parametrize("count", [1, 2])
def test_a_stream_goes_on_at_the_token_where_it_was_stopped(corpus, stream, tmp_path, monkeypatch, count):
    output, options, source = tmp_path / "rows.mindrecord", STREAM, [corpus / "a.jsonl"]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, count)
        preprocess_pretrain(source, output, TOKENIZER, 1000, options=options)
    assert (tmp_path / "rows.mindrecord.partial").is_dir()
    with pytest.raises(InputError, match="another tokenizer"):
        swapped = SparkTokenizer(TOKENIZER.model.replace(b"\xe7\x9a\x84", b"\xe7\x9a\x85", 1))
        preprocess_pretrain(source, output, swapped, 1000, options=options, way=Way(resume=True))
    preprocess_pretrain(source, output, TOKENIZER, 1000, options=options, way=Way(workers=2))
    assert contents(tmp_path) == stream
    assert read_manifest(output).columns == ["input_ids", "loss_mask", "document_ids"]  # type: ignore[union-attr]
    assert row_info(output).columns == ("document_ids", "input_ids", "loss_mask")


def test_a_job_that_was_ended_while_its_files_were_moved_is_finished_by_the_same_command(corpus, tmp_path, monkeypatch):
    output, source = tmp_path / "rows.mindrecord", [corpus / "a.jsonl"]
    options = Options(shard_bytes=1 << 20)
    real = Path.replace
    moved: list[Path] = []

    def replace(self: Path, target: Path) -> Path:
        if "out" in self.parts:
            moved.append(self)
            if len(moved) == 4:
                raise Stopped
        return real(self, target)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Path, "replace", replace)
        preprocess_pretrain(source, output, TOKENIZER, 1000, options=options)
    assert len(moved) == 4
    preprocess_pretrain(source, output, TOKENIZER, 1000, options=options)
    assert not (tmp_path / "rows.mindrecord.partial").exists()
    assert verify_rows(output).manifest
    with pytest.raises(InputError, match="already exists"):
        preprocess_pretrain(source, output, TOKENIZER, 1000, options=options)
    with pytest.raises(InputError, match="nothing to go on with"):
        preprocess_pretrain(source, output, TOKENIZER, 1000, options=options, way=Way(resume=True), force=True)


def test_both_outputs_in_one_file_are_refused(tmp_path):
    output = tmp_path / "rows.mindrecord"
    with pytest.raises(InputError, match="both outputs are one file"):
        preprocess_sft([ALPACA], output, TOKENIZER, 1024, options=Options(held_out=0.5), held_out=output)


def test_force_replaces_several_files_by_one(corpus, tmp_path):
    output = tmp_path / "rows.mindrecord"
    preprocess_pretrain([corpus / "a.jsonl"], output, TOKENIZER, 1000, options=Options(shard_bytes=1 << 20))
    preprocess_pretrain([ALPACA], output, TOKENIZER, 1000, force=True)
    names = ["rows.mindrecord", "rows.mindrecord.db", "rows.mindrecord.json", "rows.mindrecord.report.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_bad_records_are_listed_with_file_and_line_and_too_many_of_them_are_too_many(tmp_path):
    source, output = tmp_path / "a.jsonl", tmp_path / "rows.mindrecord"
    good = json.dumps({"instruction": "q", "output": "a"})
    source.write_bytes(f'{good}\n{{"instruction": \n{good}\n{{"output": 3}}\n'.encode() + b'"\xff"\n')
    with pytest.raises(InputError, match="this line is not JSON") as caught:
        preprocess_sft([source], output, TOKENIZER, 31)
    assert caught.value.line == 2
    with pytest.raises(JobError, match="more than 2 records are bad"):
        preprocess_sft([source], output, TOKENIZER, 31, options=Options(on_error="skip", max_errors=2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    report = preprocess_sft([source], output, TOKENIZER, 31, options=Options(on_error="skip", max_errors=3))
    assert (report.ledger.read, report.ledger.kept, report.ledger.bad) == (5, 2, 3)
    assert report.bad_records == "rows.mindrecord.errors.jsonl"
    listed = [json.loads(line) for line in (tmp_path / report.bad_records).read_text(encoding="utf-8").splitlines()]
    assert [(one["file"], one["line"]) for one in listed] == [(str(source), 2), (str(source), 4), (str(source), 5)]
    assert '{"output": 3}' in listed[1]["error"]


def test_records_that_say_the_same_are_kept_once_across_blocks_files_and_formats(tmp_path, monkeypatch):
    monkeypatch.setattr("spark13b.data.blocks._TABLE_ROWS", 7)
    pairs = [(f"q{number % 40}", f"a{number % 40}") for number in range(100)]
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": q, "output": a} for q, a in pairs]))
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    (tmp_path / "b.json").write_text(json.dumps([{"messages": one} for one in turns]))
    options = Options(deduplicate=True)
    sources = [tmp_path / "a.json", tmp_path / "b.json"]
    report = preprocess_sft(sources, tmp_path / "rows.mindrecord", TOKENIZER, 63, options=options)
    assert (report.ledger.read, report.ledger.kept, report.ledger.duplicates) == (200, 40, 160)
    assert report.formats == {"alpaca": 100, "messages": 100}
    assert report.ledger.learned_tokens == sum(len(TOKENIZER.encode(f"a{number}")) + 1 for number in range(40))


def test_a_line_of_many_megabytes_is_one_document_and_keeps_every_token(tmp_path):
    source, text = tmp_path / "a.jsonl", "今天天气很好，我们去公园吧。\n" * 120_000
    source.write_text(json.dumps({"text": text}, ensure_ascii=False) + '\n{"text": "b"}\n', encoding="utf-8")
    assert source.stat().st_size > 5_000_000
    report = preprocess_pretrain([source], tmp_path / "rows.mindrecord", TOKENIZER, 4095)
    line = len(TOKENIZER.encode("今天天气很好，我们去公园吧。\n"))
    assert report.ledger.read == 2
    found = verify_rows(tmp_path / "rows.mindrecord")
    assert found.tokens == report.ledger.tokens
    assert abs(found.tokens - 120_000 * line) < 120_000  # the first line alone has a space before it
    first = next(open_rows(tmp_path / "rows.mindrecord", 1))[0][0]
    assert TOKENIZER.decode(first.tolist()).startswith("今天天气很好，我们去公园吧。\n今天天气很好，")


@pytest.mark.parametrize(
    ("mask", "ids", "what"),
    [
        ([0, 2, 0, 0], [1, 2, 3, 4], "a mask that is neither 0 nor 1, at position 1"),
        ([0, 1, 1, 1], [1, 2, 8000, 4], "an id outside 0 to 7999, at position 2"),
    ],
)
def test_verify_names_the_first_row_with_a_fault(tmp_path, mask, ids, what):
    from mindspore.mindrecord import FileWriter

    output = tmp_path / "rows.mindrecord"
    writer = FileWriter(str(output), 1)
    writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in ("input_ids", "loss_mask")})
    good = {"input_ids": np.array([1, 2, 3, 4], np.int32), "loss_mask": np.array([0, 1, 1, 1], np.int32)}
    writer.write_raw_data([good, {"input_ids": np.array(ids, np.int32), "loss_mask": np.array(mask, np.int32)}])
    writer.commit()
    with pytest.raises(InputError, match=f"row 1 has {what}"):
        verify_rows(output, GOLDEN / "tokenizer")
    with pytest.raises(InputError, match="no manifest that names its tokenizer"):
        verify_rows(output)
    with pytest.raises(InputError, match="the file has rows 0 to 1"):
        look_into(output, range(2, 3), GOLDEN / "tokenizer")


def test_verify_refuses_another_tokenizer_and_rows_that_disagree_with_the_manifest(tmp_path):
    output = tmp_path / "rows.mindrecord"
    preprocess_sft([ALPACA], output, TOKENIZER, 1024)
    other = tmp_path / "tok"
    other.mkdir()
    (other / "tokenizer.model").write_bytes(TOKENIZER.model.replace(b"\xe7\x9a\x84", b"\xe7\x9a\x85", 1))
    with pytest.raises(InputError, match="made with another tokenizer"):
        verify_rows(output, other)
    manifest = tmp_path / "rows.mindrecord.json"
    manifest.write_text(manifest.read_text().replace('"rows": 43', '"rows": 44', 1))
    with pytest.raises(InputError, match="the manifest says 44 rows, there are 43"):
        verify_rows(output)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ([("a", 1, 1), ("b", 2, 2), ("c", 3, 3)], "c was not among them"),
        ([("a", 1, 1)], "b is not among them now"),
        ([("a", 1, 1), ("b", 2, 9)], "b has changed"),
        ([("b", 2, 2), ("a", 1, 1)], "they come in another order"),
    ],
)
def test_a_job_that_was_begun_with_other_files_names_the_first_that_differs(tmp_path, now, told):
    begun = JobFolder(tmp_path / "rows.mindrecord", {"list of input files": [("a", 1, 1), ("b", 2, 2)]})
    begun.open(anew=False, resume=False)
    begun.close(keep=True)
    other = JobFolder(tmp_path / "rows.mindrecord", {"list of input files": now})
    with pytest.raises(InputError, match=f"begun with another list of input files: {told}"):
        other.open(anew=False, resume=False)
    other.close(keep=True)
