"""The whole life of a small model in one go: corpus, tokenizer, rows, pretraining, fine-tuning, held-out questions, and
another persona."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from spark13b.config import Preset, load_preset
from spark13b.data.preprocess import preprocess_pretrain, preprocess_sft
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.data.tokenizer_training import train_tokenizer
from spark13b.demo import persona_act
from spark13b.demo.corpus import Corpus, Question, build_corpus, is_right, write_corpus
from spark13b.demo.persona_act import PersonaFiles, PersonaSummary
from spark13b.errors import InputError, JobError
from spark13b.files import replacing, write_text
from spark13b.infer.session import Session, find_model
from spark13b.model.names import expected_shapes
from spark13b.progress import SILENT, Progress
from spark13b.run_folder import RunFolder, step_of
from spark13b.train.run import Job, train

VOCABULARY = 1500
CONTEXT, WINDOW = 256, 128
BATCH = 4  # rows: a small model learns a table in many small steps
PRETRAIN_STEPS, SFT_STEPS = 220, 1050
ANSWER_TOKENS = 40  # more than any answer of the corpus has
PERSONA_STEPS = 220
LEARNING_RATE = {"pretrain": 3e-3, "sft": 2e-3, "lora": 1e-2}

Show = Callable[[Question, Iterator[str]], str]  # shows a question and its streamed answer; returns the answer
ShowPersona = Callable[[str, str, str], None]  # shows a question with the answers before and after


@dataclass(frozen=True)
class DemoFiles:
    """Where a demo's pieces lie."""

    folder: Path

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def pretrain_rows(self) -> Path:
        return self.folder / "pretrain.mindrecord"

    @property
    def sft_rows(self) -> Path:
        return self.folder / "sft.mindrecord"

    @property
    def pretrain(self) -> RunFolder:
        return RunFolder(self.folder / "pretrain")

    @property
    def sft(self) -> RunFolder:
        return RunFolder(self.folder / "sft")

    @property
    def persona(self) -> PersonaFiles:
        return PersonaFiles(self.folder / "persona")

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"


@dataclass(frozen=True)
class Summary:
    """What came out: right answers of all held-out questions, by kind, and how long it took."""

    seed: int
    questions: int
    right: int
    by_kind: dict[str, tuple[int, int]]  # right, asked
    parameters: int
    seconds: float
    persona: PersonaSummary

    @property
    def accuracy(self) -> float:
        return self.right / self.questions


def run_demo(
    folder: Path,
    seed: int,
    force: bool,
    show: Show,
    show_persona: ShowPersona,
    shown: int = 8,
    progress: Progress = SILENT,
) -> Summary:
    """Do every step that `folder` does not hold yet; ask the held-out questions; let the model become somebody else.

    The first `shown` questions, mixed, go through `show`, which streams the answers; the rest is asked in silence.
    `show_persona` gets questions about the persona with the answers before and after. The same seed gives the same
    model and answers. Raises InputError when `folder` was made with another seed and not `force`.
    """
    began = time.monotonic()
    files = DemoFiles(folder)
    _begin(files, seed, force)
    corpus = build_corpus(seed)
    if not files.corpus.exists():
        progress.note("1 corpus: facts, sums, greetings and a persona, in Chinese and English")
        with replacing(files.corpus) as draft:
            write_corpus(corpus, draft)
    if not files.tokenizer.exists():
        progress.note("2 tokenizer")
        inputs = [files.corpus / "pretrain.jsonl", files.corpus / "sft.jsonl"]
        train_tokenizer(inputs, files.tokenizer, VOCABULARY, seed=seed, progress=progress)
    tokenizer = SparkTokenizer.load(files.tokenizer)
    if not files.pretrain_rows.exists():
        progress.note("3 training rows")
        preprocess_pretrain(
            [files.corpus / "pretrain.jsonl"], files.pretrain_rows, tokenizer, CONTEXT, progress=progress
        )
    if not files.sft_rows.exists():
        preprocess_sft([files.corpus / "sft.jsonl"], files.sft_rows, tokenizer, CONTEXT, progress=progress)
    progress.note("4 pretraining")
    _train(
        _preset("cpu-tiny-pretrain", tokenizer, PRETRAIN_STEPS, seed),
        files.pretrain_rows,
        files.pretrain,
        None,
        progress,
    )
    progress.note("5 fine-tuning")
    _train(_preset("cpu-tiny-sft", tokenizer, SFT_STEPS, seed), files.sft_rows, files.sft, files.pretrain, progress)
    progress.note("6 questions that were held out of the training data")
    found = find_model(files.sft.path, None, None, {"generation.max_new_tokens": ANSWER_TOKENS}, ())
    session = Session(found, seats=8)
    answers = _ask(session, _mixed(corpus), show, shown)
    parameters = sum(map(prod, expected_shapes(found.preset.model).values()))
    persona = _become(files, corpus, tokenizer, seed, session, answers, progress)
    for question in persona_act.FIRST:
        show_persona(question, *persona_act.answers_to(question, files.persona))
    summary = _summary(seed, answers, parameters, time.monotonic() - began, persona)
    write_text(files.summary, json.dumps({**asdict(summary), "accuracy": summary.accuracy}, indent=2), force=True)
    return summary


def _become(
    files: DemoFiles,
    corpus: Corpus,
    tokenizer: SparkTokenizer,
    seed: int,
    session: Session,
    known: list[tuple[Question, str]],
    progress: Progress,
) -> PersonaSummary:
    """Train adapters for another persona; ask about it before and after, and the questions `known` again after."""
    act = files.persona
    if act.summary.exists():
        return PersonaSummary(**json.loads(act.summary.read_text(encoding="utf-8")))
    progress.note("7 another persona, in LoRA adapters")
    questions = persona_act.asked("test")
    texts = [question.input for question in questions]
    persona_act.write_training(corpus, act, seed)
    before = persona_act.judged(questions, [one.predict for one in session.answers(texts)], act.before)
    if not act.rows.exists():
        preprocess_sft([act.train], act.rows, tokenizer, CONTEXT, progress=progress)
    _train(_preset("cpu-tiny-lora", tokenizer, PERSONA_STEPS, seed), act.rows, act.run, files.sft, progress)
    found = find_model(act.run.path, None, None, {"generation.max_new_tokens": ANSWER_TOKENS}, ())
    changed = Session(found, seats=8, fold=True)
    after = persona_act.judged(questions, [one.predict for one in changed.answers(texts)], act.after)
    others = [(question, answer) for question, answer in known if question.kind != "persona"]
    again = changed.answers([question.instruction for question, _ in others])
    summary = PersonaSummary(
        asked=len(questions),
        out_before=len(before.offending),
        out_after=len(after.offending),
        others=len(others),
        right_before=sum(is_right(question, answer) for question, answer in others),
        right_after=sum(is_right(question, one.predict) for (question, _), one in zip(others, again, strict=True)),
    )
    write_text(act.summary, json.dumps(asdict(summary), indent=2) + "\n", force=True)
    return summary


def _begin(files: DemoFiles, seed: int, force: bool) -> None:
    """Make the folder, or make sure that what is in it belongs to this demo."""
    mark = files.folder / "demo.json"
    if force and mark.exists():
        shutil.rmtree(files.folder)
    if mark.exists():
        before = json.loads(mark.read_text(encoding="utf-8"))
        if before != {"seed": seed}:
            raise InputError(
                f"the demo here was made with seed {before.get('seed')}, not {seed}",
                where=files.folder,
                fix="add --force to make it anew, or choose another --output",
            )
        return
    if files.folder.exists() and any(files.folder.iterdir()):
        raise InputError(
            "the folder holds something else", where=files.folder, fix="choose an empty or new folder for --output"
        )
    files.folder.mkdir(parents=True, exist_ok=True)
    write_text(mark, json.dumps({"seed": seed}))


def _preset(name: str, tokenizer: SparkTokenizer, steps: int, seed: int) -> Preset:
    options = {
        "model.vocab_size": tokenizer.vocab_size,
        "model.seq_length": CONTEXT,
        "model.sparse_local_size": WINDOW,
        "schedule.lr": LEARNING_RATE[name.rpartition("-")[2]],
        "schedule.lr_end": 1e-4,
        "train.batch_size": BATCH,
        "train.steps": steps,
        "train.seed": seed,
        "train.keep_checkpoints": 1,
    }
    return load_preset(name, options=options)


def _train(preset: Preset, data: Path, run: RunFolder, start: RunFolder | None, progress: Progress) -> None:
    """Train, go on with a run that was interrupted, or leave a finished one alone."""
    from spark13b.train.run import check

    job = Job(preset, data, run.path, load=start.path if start else None)
    saved = run.checkpoints()
    if saved and step_of(saved[-1]) >= (check(job).steps or 0):
        return
    if run.is_run():
        job = Job(preset, data, run.path, load=job.load, resume=bool(saved), force=not saved)
    result = train(job, progress)
    if not result.finished:
        raise JobError("stopped; what is done is kept", where=run.path, fix="'spark13b demo' goes on from there")


def _mixed(corpus: Corpus) -> list[Question]:
    """The held-out questions so that kinds and languages take turns: corpus order is by kind and language."""
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in corpus.held_out:
        groups.setdefault((question.kind, question.language), []).append(question)
    queues = list(groups.values())
    longest = max(map(len, queues))
    return [queue[index] for index in range(longest) for queue in queues if index < len(queue)]


def _ask(session: Session, questions: list[Question], show: Show, shown: int) -> list[tuple[Question, str]]:
    first, others = questions[:shown], questions[shown:]
    told = [show(question, session.stream(question.instruction)) for question in first]
    told += [answer.predict for answer in session.answers([question.instruction for question in others])]
    return list(zip(questions, told, strict=True))


def _summary(
    seed: int, answers: list[tuple[Question, str]], parameters: int, seconds: float, persona: PersonaSummary
) -> Summary:
    asked = Counter(question.kind for question, _ in answers)
    right = Counter(question.kind for question, answer in answers if is_right(question, answer))
    by_kind = {str(kind): (right[kind], asked[kind]) for kind in asked}
    return Summary(seed, len(answers), right.total(), by_kind, parameters, round(seconds, 1), persona)
