"""Preprocessing a corpus beside SentencePiece alone and beside the original's way; its memory; reading its rows.

    python benchmarks/preprocess.py [--data FOLDER] [--megabytes 400] [--rounds 3] [--large 2000]

FOLDER holds text (JSON Lines, JSON, plain text; without it the project's own pages); it is repeated, each document from
another word on, until the corpus has `--megabytes`. A tokenizer of 32,000 pieces is trained on it. By turns,
in each round:

- bound: two processes that hold half of the texts each and call SentencePiece's `encode`; no files, nothing else
- ours: `spark13b preprocess pretrain` as a user runs it, start of Python and MindSpore and the files included
- the original's way: one process, the whole corpus in memory, one text at a time, Python lists, row after row to
  MindRecord (written here after the description of its scripts), without the start of Python and MindSpore

`--large` measures the memory of ours on so many megabytes as well. Memory is the sum over all processes of what is
theirs alone or their share of it (PSS), at its largest of samples ten times a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

SEQ_LENGTH = 4096
BATCH = 512


def documents(folder: Path) -> list[str]:
    """The texts of all records in a folder."""
    from spark13b.data.containers import expanded
    from spark13b.data.fields import all_texts
    from spark13b.data.records import read_records

    texts = [" ".join(all_texts(record.fields)) for path in expanded([folder]) for record in read_records(path)]
    return [text for text in texts if len(text) > 100]


def write_corpus(texts: list[str], path: Path, megabytes: float) -> None:
    """Documents in any order, each from some word in its first quarter on."""
    draw, size = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            text = draw.choice(texts)
            line = json.dumps({"text": text[draw.randrange(len(text) // 4) :]}, ensure_ascii=False) + "\n"
            size += len(line.encode())
            file.write(line)


def encode_alone(part: tuple[str, list[str]]) -> tuple[int, float]:
    """SentencePiece on texts: (tokens, seconds)."""
    import sentencepiece

    model, texts = part
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    begin, tokens = time.perf_counter(), 0
    for at in range(0, len(texts), BATCH):
        tokens += sum(map(len, processor.encode(texts[at : at + BATCH], num_threads=1)))
    return tokens, time.perf_counter() - begin


def bound(corpus: Path, model: Path) -> float:
    """Tokens a second of two processes that do nothing but encode."""
    texts = [json.loads(line)["text"] for line in corpus.open(encoding="utf-8")]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        done = pool.map(encode_alone, [(str(model), texts[half::2]) for half in (0, 1)], chunksize=1)
    return sum(tokens for tokens, _ in done) / max(seconds for _, seconds in done)


class Memory(threading.Thread):
    """The largest sum of PSS of a process and its children, in bytes, and when its first output file was there."""

    def __init__(self, pid: int, shard: Path) -> None:
        super().__init__(daemon=True)
        self.process, self.shard, self.most, self.first = psutil.Process(pid), shard, 0, 0.0
        self.begin = time.perf_counter()
        self.start()

    def run(self) -> None:
        while self.process.is_running():
            try:
                family = [self.process, *self.process.children(recursive=True)]
                self.most = max(self.most, sum(one.memory_full_info().pss for one in family))
            except psutil.Error:
                pass
            if not self.first and self.shard.exists():
                self.first = time.perf_counter() - self.begin
            time.sleep(0.1)


def ours(corpus: Path, tokenizer: Path, folder: Path, *options: str) -> tuple[float, int, float]:
    """The command: (tokens a second, bytes at most, seconds until the first file of the output was whole)."""
    output = folder / "ours.mindrecord"
    words = [sys.executable, "-m", "spark13b", "preprocess", "pretrain", "--input", corpus, "--output", output]
    words += ["--tokenizer", tokenizer, "--seq-length", SEQ_LENGTH, "--workers", 2, "--force", "--json", *options]
    begin = time.perf_counter()
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    memory = Memory(process.pid, folder / "ours.mindrecord.partial" / "state.npz")
    out, _ = process.communicate()
    seconds = time.perf_counter() - begin
    return json.loads(out)["tokens"] / seconds, memory.most, memory.first


def originals_way(corpus: Path, model: str, output: Path) -> float:
    """Tokens a second of the original's way, without the start of Python."""
    import numpy
    import sentencepiece
    from mindspore.mindrecord import FileWriter

    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    writer = FileWriter(str(output), 1, overwrite=True)
    writer.add_schema({"input_ids": {"type": "int64", "shape": [-1]}})
    begin = time.perf_counter()
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    tokens: list[int] = []
    for text in texts:
        cleaned = text.strip().replace("\\r\\n", "<ret>").replace("\\n", "<ret>").replace("\n", "<ret>")
        tokens += [*processor.encode(cleaned.replace("\t", "    ")), 5]
    for at in range(0, len(tokens) - SEQ_LENGTH, SEQ_LENGTH + 1):
        row = numpy.array(tokens[at : at + SEQ_LENGTH + 1], numpy.int64)
        writer.write_raw_data([{"input_ids": row}])
    writer.commit()
    return len(tokens) / (time.perf_counter() - begin)


def reading(folder: Path) -> float:
    """Tokens a second that the training side gets from the rows, shuffled."""
    import numpy

    from spark13b.data.mindrecord import open_rows, row_info

    path = folder / "ours.mindrecord"
    info = row_info(path)
    order = numpy.random.default_rng(0).permutation(info.rows)
    begin = time.perf_counter()
    rows = sum(len(ids) for ids, _ in open_rows(path, 8, order=order))
    return rows * info.row_length / (time.perf_counter() - begin)


def in_a_process(work: str, *arguments: object) -> float:
    """One of the measurements in a process of its own."""
    words = [sys.executable, __file__, "--only", work, *map(str, arguments)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


def rounds(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The lines of the table."""
    from spark13b.data.tokenizer_training import train_tokenizer

    texts = documents(options.data)
    corpus, part, tokenizer = folder / "corpus.jsonl", folder / "part.jsonl", folder / "tok"
    write_corpus(texts, corpus, options.megabytes)
    write_corpus(texts, part, options.megabytes / 10)
    train_tokenizer([part], tokenizer, 32_000)
    model = tokenizer / "tokenizer.model"
    found: dict[str, list[float]] = {name: [] for name in ("bound", "ours", "original", "reading")}
    most = first = 0.0
    for _ in range(options.rounds):
        found["bound"].append(bound(corpus, model))
        rate, memory, seconds = ours(corpus, tokenizer, folder)
        found["ours"].append(rate)
        most, first = max(most, memory), max(first, seconds)
        found["original"].append(in_a_process("original", corpus, model, folder / "theirs.mindrecord"))
        found["reading"].append(in_a_process("reading", folder))
    median = {name: statistics.median(values) for name, values in found.items()}
    shares = [one / other for one, other in zip(found["ours"], found["bound"], strict=True)]
    times = [one / other for one, other in zip(found["ours"], found["original"], strict=True)]
    yield f"corpus {options.megabytes:g} MB, {options.rounds} rounds, medians, million tokens a second"
    yield f"SentencePiece alone, 2 processes   {median['bound'] / 1e6:6.2f}"
    yield f"spark13b preprocess                {median['ours'] / 1e6:6.2f}   {statistics.median(shares):.2f} of that"
    ratio = f"ours is {statistics.median(times):.1f} times as fast"
    yield f"the original's way                 {median['original'] / 1e6:6.2f}   {ratio}"
    yield f"rows read by training, shuffled    {median['reading'] / 1e6:6.2f}"
    yield f"memory of all processes            {most / 2**20:,.0f} MiB, first file whole after {first:.1f} s"
    if options.large:
        write_corpus(texts, corpus, options.large)
        rate, memory, _ = ours(corpus, tokenizer, folder)
        yield f"the same on {options.large:g} MB: {rate / 1e6:.2f} million tokens a second, {memory / 2**20:,.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "docs")
    parser.add_argument("--megabytes", type=float, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=float, default=0)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        work, *arguments = options.only
        print(
            originals_way(Path(arguments[0]), arguments[1], Path(arguments[2]))
            if work == "original"
            else reading(Path(arguments[0]))
        )
        return
    with tempfile.TemporaryDirectory(prefix="spark13b-bench-") as name:
        for line in rounds(options, Path(name)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
