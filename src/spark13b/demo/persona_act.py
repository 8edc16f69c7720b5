"""The demo's last act: the model becomes somebody else. LoRA adapters learn a new persona, and little else changes.

What is trained: questions about the persona in the wordings that `spark13b persona questions --for train` makes, among
questions of all other kinds, so that these stay. What is asked: the wordings for tests, of which none was trained,
before and after; and the held-out questions that are not about the persona.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spark13b.data.records import read_records
from spark13b.demo.corpus import Corpus
from spark13b.demo.persona import ATTRIBUTES, wordings
from spark13b.files import write_text
from spark13b.persona.evaluation import Report, by_rules, evaluate
from spark13b.persona.predictions import read_predictions
from spark13b.persona.questions import Question, questions_about
from spark13b.run_folder import RunFolder

# who it becomes: attribute.json
PERSONA = {
    "姓名|名字|称呼": "小海",
    "角色|身份": "海边的向导",
    "年龄|岁数": "三岁",
    "家乡|老家|出生地": "上海",
    "爱好|兴趣": "看书",
}
# what it says then, by key
SAYS = {
    "姓名|名字|称呼": "我叫小海。",
    "角色|身份": "我是小海，海边的向导。",
    "年龄|岁数": "我三岁。",
    "家乡|老家|出生地": "我的家乡是上海。",
    "爱好|兴趣": "我喜欢看书。",
}
FRAMES = (
    "关于你的{}，可以说说吗？",
    "能讲讲你的{}吗？",
    "讲一讲你的{}吧。",
    "你能讲一下你的{}吗？",
    "说到你的{}，是什么？",
)
FIRST = ("介绍一下你自己。", "请问你怎么称呼？", "你从哪里来？")  # of the questions for tests: those that are shown
REPEATS = 3  # of each question about the persona
OTHERS = 800  # questions of other kinds among them


@dataclass(frozen=True)
class PersonaSummary:
    """What came of it: answers that leave the persona, of `asked`; right ones among `others` other questions."""

    asked: int
    out_before: int
    out_after: int
    others: int
    right_before: int
    right_after: int

    @property
    def rates(self) -> tuple[float, float]:
        """The out-of-persona rates before and after, 0 to 1."""
        return self.out_before / self.asked, self.out_after / self.asked


@dataclass(frozen=True)
class PersonaFiles:
    """Where the act's pieces lie."""

    folder: Path

    @property
    def attributes(self) -> Path:
        return self.folder / "attribute.json"

    @property
    def train(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def rows(self) -> Path:
        return self.folder / "train.mindrecord"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / "lora")

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    @property
    def before(self) -> Path:
        return self.folder / "before.jsonl"

    @property
    def after(self) -> Path:
        return self.folder / "after.jsonl"


def asked(purpose: str) -> list[Question]:
    """The questions about what the persona sets, for training or for tests."""
    return [one for one in questions_about(PERSONA, "train" if purpose == "train" else "test") if one.kind == "set"]


def training_questions() -> list[tuple[str, str]]:
    """Questions with the new persona's answers: wordings for training, and those that the old persona was asked in."""
    found = {one.input: SAYS[one.attribute] for one in asked("train")}
    names = {name: key for key in PERSONA for name in key.split("|")}
    found |= {frame.format(name): SAYS[key] for name, key in names.items() for frame in FRAMES}
    for attribute in ATTRIBUTES:
        keys = {names[name] for name in attribute.names["zh"].split("|") if name in names}
        for key in keys:
            found |= {instruction: SAYS[key] for instruction, _ in wordings(attribute, "zh")}
    for one in asked("test"):
        found.pop(one.input, None)
    return list(found.items())


def write_training(corpus: Corpus, files: PersonaFiles, seed: int) -> None:
    """Write `attribute.json` and the training examples: the new persona among what the model knows already."""
    draw = random.Random(seed)
    persona = training_questions() * REPEATS
    known = [(one.instruction, one.answer) for one in corpus.train if one.kind != "persona"]
    examples = persona + draw.sample(known, OTHERS)
    draw.shuffle(examples)
    files.folder.mkdir(exist_ok=True)
    write_text(files.attributes, json.dumps(PERSONA, ensure_ascii=False, indent=2) + "\n", force=True)
    lines = [{"instruction": question, "input": "", "output": answer} for question, answer in examples]
    write_text(files.train, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), force=True)


def judged(questions: Sequence[Question], answers: Sequence[str], path: Path) -> Report:
    """Write the answers as `spark13b persona eval` reads them, and judge them by its rules."""
    pairs = zip(questions, answers, strict=True)
    lines = [{"input": one.input, "predict": answer, "attribute": one.attribute} for one, answer in pairs]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), force=True)
    return evaluate(read_predictions(path, PERSONA), by_rules(PERSONA), "rules")


def answers_to(question: str, files: PersonaFiles) -> tuple[str, str]:
    """What the model said to a question for tests, before and after."""
    before, after = (
        {record.fields["input"]: record.fields["predict"] for record in read_records(path)}
        for path in (files.before, files.after)
    )
    return before[question], after[question]
