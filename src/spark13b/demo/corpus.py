"""The demo's corpus: text for pretraining, questions with answers for fine-tuning, questions held out.

All of it is made by code from the tables beside this file; nothing is downloaded. What is held out:

- facts: a (fact, wording) pair; the fact is trained in the other wordings, the wording with the other facts.
- arithmetic: a (sum, wording) pair; the sum is trained in other wordings. `COMMUTED` additions are missing from the
  training text altogether, in both languages and in figures, and can only come from the same two numbers in the other
  order. No other sum is new: a model this small learns the table of 242 sums, not to add.
- greetings: an (opening, address, tail) triple whose parts are trained in other triples. These are easy: the opening
  alone tells the answer.
- persona: a (name, frame) or (beginning, question) pair whose parts are trained in other pairs. Half of these are easy.

Facts and sums are not: the training question most like one of them has, nearly always, another answer.

Never held out: the shortest questions, such as 你是谁？ and `Who are you?`, as longer ones contain them. Grading is by
the whole answer, see `is_right`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.demo.arithmetic import LARGEST, arithmetic_prompts, arithmetic_statements
from spark13b.demo.facts import fact_prompts, fact_statements
from spark13b.demo.greetings import greeting_prompts
from spark13b.demo.holding_out import hold_out
from spark13b.demo.persona import persona_prompts
from spark13b.demo.prompt import LANGUAGES, Kind, Language, Prompt, Statement
from spark13b.files import check_writable, replacing

HELD_OUT = 25  # questions of each kind and language: 200 in all
REPEATS = {"facts": 3, "persona": 2}  # these are in few questions, sums and greetings in many
FIRST_QUESTIONS = ("你是谁？", "你叫什么名字？", "Who are you?", "What is your name?")  # what everybody asks
FIRST_REPEATS = 12
COMMUTED = 2  # additions trained in one order only; each is asked in both languages
PARAGRAPHS = 500  # of each language, of two to four statements
CHATS: dict[Kind, int] = {"facts": 1500, "arithmetic": 1200, "greeting": 700, "persona": 600}  # in running text

_FINAL = " \t\r\n。．.！!？?…~～"


@dataclass(frozen=True, slots=True)
class Example:
    """A question to fine-tune on, and its answer."""

    instruction: str
    answer: str
    kind: Kind
    language: Language
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out question and its right answers. `parts` are what it is made of; see `Prompt`."""

    instruction: str
    accepted: tuple[str, ...]
    kind: Kind
    language: Language
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """`pretrain`: lines of text. `train`: fine-tuning, shuffled. `held_out`: sorted by kind and language.

    `commuted` names the additions (`7+4`) that stand nowhere in `pretrain` and `train`.
    """

    pretrain: list[str]
    train: list[Example]
    held_out: list[Question]
    commuted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CorpusFiles:
    """Where `write_corpus` wrote, all JSON Lines."""

    pretrain: Path
    sft: Path
    held_out: Path


def build_corpus(seed: int = 0) -> Corpus:
    """Make the corpus; the same seed gives the same corpus."""
    draw = random.Random(seed)
    prompts = [*fact_prompts(), *arithmetic_prompts(), *greeting_prompts(), *persona_prompts()]
    statements = [*fact_statements(), *arithmetic_statements()]
    commuted = _commuted(draw)
    chosen = hold_out(prompts, (statement.text for statement in statements), HELD_OUT, commuted, draw)

    left_out = set(chosen)
    trained = [prompt for prompt in prompts if prompt not in left_out and prompt.parts[0] not in commuted]
    draw.shuffle(trained)
    stated = [statement for statement in statements if statement.subject not in commuted]
    return Corpus(
        _pretrain(stated, trained, draw),
        _repeated([Example(one.instruction, one.answer, one.kind, one.language, one.parts) for one in trained], draw),
        [Question(one.instruction, one.accepted, one.kind, one.language, one.parts) for one in chosen],
        commuted,
    )


def _repeated(examples: list[Example], draw: random.Random) -> list[Example]:
    """Every example as often as it needs, shuffled anew."""
    repeated = [one for one in examples for _ in range(_times(one))]
    draw.shuffle(repeated)
    return repeated


def _times(example: Example) -> int:
    return FIRST_REPEATS if example.instruction in FIRST_QUESTIONS else REPEATS.get(example.kind, 1)


def is_right(question: Question, answer: str) -> bool:
    """Whether `answer` is one of the accepted answers, word for word, but for spaces and marks at its ends.

    The whole answer counts: `18` is not `8`, `not Paris` is not `Paris`, `fe` is not `Fe`, an answer in the other
    language or with more behind it is wrong.
    """
    return _bare(answer) in map(_bare, question.accepted)


def write_corpus(corpus: Corpus, folder: Path, force: bool = False) -> CorpusFiles:
    """Write `pretrain.jsonl` (`text`), `sft.jsonl` (`instruction`, `input`, `output`) and `held_out.jsonl`
    (`input`, `accepted`, `kind`, `language`) to `folder`, each whole or not at all.

    Raises InputError when one of them exists and not `force`, before any is written; JobError when the disk is full.
    """
    files = CorpusFiles(folder / "pretrain.jsonl", folder / "sft.jsonl", folder / "held_out.jsonl")
    for path in (files.pretrain, files.sft, files.held_out):
        check_writable(path, force=force)
    _write_lines(files.pretrain, ({"text": line} for line in corpus.pretrain), force)
    _write_lines(
        files.sft,
        ({"instruction": one.instruction, "input": "", "output": one.answer} for one in corpus.train),
        force,
    )
    _write_lines(
        files.held_out,
        (
            {"input": one.instruction, "accepted": one.accepted, "kind": one.kind, "language": one.language}
            for one in corpus.held_out
        ),
        force,
    )
    return files


def _commuted(draw: random.Random) -> tuple[str, ...]:
    """Additions of two different numbers, neither of them 0 or 1; none the other order of another."""
    pairs = [(a, b) for a in range(2, LARGEST) for b in range(2, a)]
    return tuple(f"{a}+{b}" if draw.random() < 0.5 else f"{b}+{a}" for a, b in draw.sample(pairs, COMMUTED))


def _pretrain(statements: Sequence[Statement], trained: Sequence[Prompt], draw: random.Random) -> list[str]:
    """The statements one by one and in paragraphs, and chats: some of `trained` as running text; no line twice."""
    lines = [statement.text for statement in statements]
    for language in LANGUAGES:
        texts = [statement.text for statement in statements if statement.language == language]
        for _ in range(PARAGRAPHS):
            lines.append(_joined(draw.sample(texts, draw.randint(2, 4)), language))
    for kind, count in CHATS.items():
        for prompt in draw.sample([prompt for prompt in trained if prompt.kind == kind], count):
            lines.append(_joined([prompt.instruction, prompt.answer], prompt.language))
    lines = list(dict.fromkeys(lines))
    draw.shuffle(lines)
    return lines


def _joined(sentences: Sequence[str], language: Language) -> str:
    """Sentences in a row; one that ends without a mark (a sum in figures) is closed first."""
    if language == "zh":
        return "".join(text if text[-1] in "。！？" else text + "。" for text in sentences)
    return " ".join(text if text[-1] in ".!?" else text + "." for text in sentences)


def _bare(answer: str) -> str:
    return answer.strip().rstrip(_FINAL)


def _write_lines(target: Path, records: Iterable[dict[str, Any]], force: bool) -> None:
    with replacing(target, force=force) as draft, draft.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
