"""Training a SentencePiece model with the layout of iFlytekSpark's, from the user's own text."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spark13b.data.clean import clean
from spark13b.data.fields import all_texts
from spark13b.data.records import Record
from spark13b.data.sources import Sources
from spark13b.data.tokenizer import (
    BOS,
    BOT,
    END,
    EOS,
    MODEL_FILE,
    PAD,
    RET,
    UNK,
    USER,
    VOCAB_FILE,
    SparkTokenizer,
)
from spark13b.errors import InputError, JobError
from spark13b.files import check_writable, replacing
from spark13b.progress import SILENT, Meter, Progress

# ids 0 to 38 of the official layout; bytes are 39 to 294
_CONTROL = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
_PIECES = {"pad_piece": PAD, "bos_piece": BOS, "eos_piece": EOS, "unk_piece": UNK}
_NAMED = {5: END, 6: RET, 7: USER, 8: BOT}
_SYMBOLS = [_NAMED.get(index, f"<tok{index}>") for index in range(4, 39)]
_FIXED = 295  # pieces that are there whatever the text is

SMALLEST_VOCAB = 320
LARGEST_VOCAB = 1_000_000
_COVERAGE = 0.9995  # of all characters get a piece of their own; the rest is written in bytes
_CHARACTER_SHARE = 0.8  # of the free pieces, at most, when the vocabulary is too small for that coverage

_SENTENCES = "sentences.txt"
_SENTENCE = 512  # characters; SentencePiece leaves out what is longer than 4192 bytes
_SAMPLE = 1_000_000  # sentences that are learned from, at most
_RESERVED = str.maketrans({"\u2581": " ", "\u2585": " ", "\t": " ", "\0": " "})  # a sentence with these is left out


def train_tokenizer(
    inputs: Sequence[Path],
    output: Path,
    vocab_size: int,
    *,
    seed: int = 0,
    force: bool = False,
    progress: Progress = SILENT,
    log: Callable[[str], None] | None = None,
) -> SparkTokenizer:
    """Learn a unigram model from every text in `inputs`; write `output/tokenizer.model` and `tokenizer.vocab`.

    The same inputs, size and seed give the same bytes. A corpus that does not give `vocab_size` pieces gives as many
    as it can. Of more than a million sentences a sample is taken, by `seed`. `log` is handed SentencePiece's own
    words. Raises InputError for what cannot be read or written, JobError when SentencePiece fails.
    """
    if not SMALLEST_VOCAB <= vocab_size <= LARGEST_VOCAB:
        raise InputError(
            f"--vocab-size must be from {SMALLEST_VOCAB} to {LARGEST_VOCAB:,}, not {vocab_size:,}",
            fix=f"{_FIXED} pieces are special tokens and bytes; the official model has 60000 in all",
        )
    sources = Sources(inputs)
    output = output.resolve()
    force = _check_output(output, force=force)
    repetition = sources.repetition()
    if repetition is not None:
        progress.note(f"note: {repetition}, and what it says counts as often")
    with progress.track("read", total=sources.size, unit="bytes") as meter:
        sentences = _sample(_sentences(sources.records(meter)), seed)
    if not sentences:
        raise InputError("there is no text to learn from", where=inputs[0], fix="give files with text in them")
    with replacing(output, force=force) as draft:
        draft.mkdir()
        # beside the draft: SentencePiece is given relative names, as it writes them into the model
        rare = _rare_characters(sentences, vocab_size)
        with (draft.parent / _SENTENCES).open("w", encoding="utf-8") as file:
            file.writelines(sentence.translate(rare) + "\n" for sentence in sentences)
        del sentences
        with progress.track("train", unit="steps") as meter:
            _run_sentencepiece(draft.parent, vocab_size, meter, log)
        for name in (MODEL_FILE, VOCAB_FILE):
            (draft.parent / name).rename(draft / name)
        model = (draft / MODEL_FILE).read_bytes()
    return SparkTokenizer(model, output / MODEL_FILE)


def _check_output(folder: Path, *, force: bool) -> bool:
    """Refuse a folder that cannot be written or holds anything of the user's; say whether it is to be replaced."""
    if folder.is_file():
        raise InputError("the output is a file", where=folder, fix="name a folder")
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in found if name not in (MODEL_FILE, VOCAB_FILE)]
    if others:
        raise InputError(f"the folder holds other things: {others[0]}", where=folder, fix="name a folder of its own")
    force = force or (folder.is_dir() and not found)  # an empty folder is as good as none
    check_writable(folder, force=force)
    return force


def _sentences(records: Iterable[Record]) -> Iterator[str]:
    """All texts of the records, cleaned as `preprocess` does, in pieces short enough for SentencePiece."""
    for record in records:
        for text in all_texts(record.fields):
            for line in clean(text).split(RET):  # <ret> is a piece already
                line = line.encode(errors="ignore").decode().translate(_RESERVED)
                for start in range(0, len(line), _SENTENCE):
                    sentence = line[start : start + _SENTENCE].strip()
                    if sentence:
                        yield sentence


def _sample(sentences: Iterable[str], seed: int) -> list[str]:
    """At most `_SAMPLE` sentences, each with the same chance (reservoir sampling, Vitter's algorithm R)."""
    chosen: list[str] = []
    draw = random.Random(seed)
    for count, sentence in enumerate(sentences):
        if count < _SAMPLE:
            chosen.append(sentence)
        elif (slot := draw.randrange(count + 1)) < _SAMPLE:
            chosen[slot] = sentence
    return chosen


def _rare_characters(sentences: list[str], vocab_size: int) -> dict[int, str]:
    """For `str.translate`: the characters that get no piece of their own, as they are rare; bytes will stand for them.

    They are chosen here because SentencePiece refuses a vocabulary that is too small for 98 % of all characters.
    """
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(sentence)
    room = int((vocab_size - _FIXED) * _CHARACTER_SHARE)
    enough = _COVERAGE * counts.total()
    rare = {}
    covered = 0
    for rank, (character, count) in enumerate(counts.most_common()):
        if rank >= room or covered >= enough:
            rare[ord(character)] = RET  # no piece reaches over a special token
        covered += count
    return rare


def _run_sentencepiece(folder: Path, vocab_size: int, meter: Meter, log: Callable[[str], None] | None) -> None:
    """Train in a process of its own: it can be stopped, and its log can be read for progress."""
    settings: dict[str, Any] = {
        "input": _SENTENCES,
        "model_prefix": Path(MODEL_FILE).stem,
        "model_type": "unigram",
        "vocab_size": vocab_size,
        "hard_vocab_limit": False,
        "character_coverage": 1.0,
        "byte_fallback": True,
        "split_digits": True,  # 12 is read as 1 and 2, so that numbers never seen can be
        "normalization_rule_name": "identity",
        "user_defined_symbols": _SYMBOLS,
        "num_threads": 16,  # sums are taken by thread: their number, not that of the cores, decides the result
        **_CONTROL,
        **_PIECES,
    }
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(settings)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    last = ""
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if log is not None:
                log(line.rstrip())
            last = line.strip() or last
            step = _STEP.search(line)
            if step:
                meter.show(pieces=f"{int(step[1]):,}")
                meter.advance()
        if child.wait():
            raise JobError(
                f"SentencePiece could not train: {last}", fix="give more text; --debug shows all it has to say"
            )
    finally:
        child.kill()
        child.wait()


_STEP = re.compile(r"EM sub_iter=\d+ size=(\d+)")
_CHILD = "import json, sys, sentencepiece; sentencepiece.SentencePieceTrainer.train(**json.loads(sys.argv[1]))"
