"""The demo's corpus: true, bilingual, the same for the same seed, and its held-out questions nowhere in training."""

from __future__ import annotations

import calendar
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from spark13b.data.fields import document, question_and_answer
from spark13b.data.records import read_records
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.demo.corpus import (
    COMMUTED,
    FIRST_QUESTIONS,
    FIRST_REPEATS,
    HELD_OUT,
    REPEATS,
    Corpus,
    Question,
    build_corpus,
    is_right,
    write_corpus,
)
from spark13b.demo.facts import RELATIONS
from spark13b.demo.holding_out import normal_form
from spark13b.demo.prompt import KINDS, LANGUAGES
from spark13b.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module", params=SEEDS)
def corpus(request: pytest.FixtureRequest) -> Corpus:
    return build_corpus(request.param)


def digest(corpus: Corpus) -> str:
    return hashlib.sha256(repr(corpus).encode()).hexdigest()


def question(*accepted: str) -> Question:
    return Question("?", accepted, "facts", "en", ("a", "b"))


def test_the_same_seed_gives_the_same_corpus_in_another_process_too():
    code = (
        "import hashlib; from spark13b.demo.corpus import build_corpus;"
        "print(hashlib.sha256(repr(build_corpus(5)).encode()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert other.stdout.strip() == digest(build_corpus(5)) != digest(build_corpus(6))


def test_seeds_hold_out_other_questions():
    first, second = ({one.instruction for one in build_corpus(seed).held_out} for seed in (0, 1))
    assert len(first & second) < len(first) / 4


def test_making_a_corpus_does_not_load_mindspore():
    code = "import sys, spark13b.demo.corpus as c; c.build_corpus(); sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_held_out_question_stands_nowhere_in_training(corpus: Corpus):
    texts = [*corpus.pretrain, *(one.instruction for one in corpus.train)]
    texts += [one.instruction + one.answer for one in corpus.train]
    plain, normal = "\n".join(texts), "\n".join(map(normal_form, texts))
    for one in corpus.held_out:
        assert one.instruction not in plain
        assert normal_form(one.instruction) not in normal


def test_normal_form_sees_through_spelling_and_keeps_a_question_apart_from_its_answer():
    assert normal_form("What is 3 plus 5 ?") == normal_form("what is 3 plus 5") == "whatis3plus5"
    assert normal_form("３＋５＝？") == normal_form("3 + 5 = ?") == "3+5=?"
    assert normal_form("3+5=?") not in normal_form("3 + 5 = 8")
    assert normal_form("0 and 1? 0 + 1") == "0and1 0+1"
    assert normal_form("你好，小星！") == normal_form("你好 小星") == "你好小星"


def test_no_question_is_asked_twice_or_has_two_answers(corpus: Corpus):
    """But for those that are repeated in training as they are."""
    trained = Counter((one.instruction, one.kind) for one in corpus.train)
    for (instruction, kind), count in trained.items():
        assert count == (FIRST_REPEATS if instruction in FIRST_QUESTIONS else REPEATS.get(kind, 1))
    asked = [one.instruction for one in corpus.held_out]
    assert len(set(asked)) == len(asked)
    answers: dict[str, set[str]] = {}
    for one in corpus.train:
        answers.setdefault(normal_form(one.instruction), set()).add(one.answer)
    assert all(len(found) == 1 for found in answers.values())


def test_facts_and_sums_cannot_be_answered_by_likeness():
    """The answer of the training question that shares the most character pairs is wrong for more than 4 of 5."""

    def pairs(text: str) -> set[str]:
        form = normal_form(text)
        return {form[place : place + 2] for place in range(len(form))}

    def likeness(one: set[str], other: set[str]) -> float:
        shared = len(one & other)
        return shared / (len(one) + len(other) - shared)

    corpus = build_corpus()
    trained = [(pairs(one.instruction), one.answer) for one in corpus.train]
    asked = [one for one in corpus.held_out if one.kind in ("facts", "arithmetic")]
    right = 0
    for one in asked:
        own = pairs(one.instruction)
        nearest = max(trained, key=lambda other: likeness(own, other[0]))
        right += is_right(one, nearest[1])
    assert right < len(asked) / 5


def test_each_part_of_a_held_out_question_is_trained_with_other_partners(corpus: Corpus):
    seen = Counter((one.kind, one.language, part) for one in corpus.train for part in one.parts)
    for one in corpus.held_out:
        for part in one.parts:
            if part not in corpus.commuted:
                assert seen[one.kind, one.language, part] >= 4, one


def test_the_right_answer_to_a_held_out_question_is_an_answer_in_training(corpus: Corpus):
    """Also that what is asked about has one answer: the answers trained for its first part are the accepted one."""
    trained: dict[tuple[str, str, str], set[str]] = {}
    for one in corpus.train:
        trained.setdefault((one.kind, one.language, one.parts[0]), set()).add(one.answer)
    for one in corpus.held_out:
        if one.parts[0] not in corpus.commuted:
            assert trained[one.kind, one.language, one.parts[0]] == {one.accepted[0]}


def test_commuted_additions_are_trained_in_the_other_order_only(corpus: Corpus):
    text = "\n".join([*corpus.pretrain, *(one.instruction + " " + one.answer for one in corpus.train)])
    assert len(corpus.commuted) == COMMUTED
    for entry in corpus.commuted:
        a, b = entry.split("+")
        assert a != b
        asked = [one for one in corpus.held_out if one.parts[0] == entry]
        assert [one.language for one in asked] == ["zh", "en"]
        for said in (
            f"{a}+{b}",
            f"{a} + {b}",
            f"{a}加{b}",
            f"{a}加上{b}",
            f"{a} plus {b}",
            f"{a}和{b}的和",
            f"sum of {a} and {b}",
        ):
            assert not re.search(rf"(?<!\d){re.escape(said)}(?!\d)", text), said
        assert f"\n{b} + {a} = {int(a) + int(b)}\n" in text
        assert sum(one.parts[0] == f"{b}+{a}" for one in corpus.train) >= 10


def test_arithmetic_is_true(corpus: Corpus):
    answers = [(one.instruction, one.answer) for one in corpus.train if one.kind == "arithmetic"]
    held_out = [one for one in corpus.held_out if one.kind == "arithmetic"]
    answers += [(one.instruction, one.accepted[0]) for one in held_out]
    assert len(answers) > 3000
    for instruction, answer in answers:
        a, sign, b, c = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", answer).groups()
        numbers = re.findall(r"\d+", instruction)
        backwards = re.search(r"away from|subtract", instruction)
        assert numbers == ([b, a] if backwards else [a, b])
        assert int(c) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
        assert 0 <= int(c) <= 20
        adds = re.search(r"[加和+]|一共|plus|much|Add|sum|buy", instruction)
        assert bool(adds) == (sign == "+"), instruction
    assert all(one.accepted[1] == one.accepted[0].split(" = ")[1] for one in held_out)


def test_sums_in_the_pretraining_text_are_true(corpus: Corpus):
    text = "\n".join(corpus.pretrain)
    stated = re.findall(r"(\d+)(加上|加|减去|减| \+ | - )(\d+)(?:等于|得| = )(\d+)", text)
    stated += re.findall(r"(\d+) (plus|minus) (\d+) (?:is|equals) (\d+)", text)
    assert len(stated) > 2000
    for a, sign, b, c in stated:
        assert int(c) == (int(a) + int(b) if sign.strip() in ("加上", "加", "+", "plus") else int(a) - int(b))


def test_days_months_and_times_agree_with_the_calendar():
    tables = {relation.name: relation.facts for relation in RELATIONS}
    days, months = list(calendar.day_name), list(calendar.month_name)[1:]
    assert [(fact.subject["en"], fact.object["en"]) for fact in tables["weekday"]] == [
        (day, days[(index + 1) % 7]) for index, day in enumerate(days)
    ]
    assert [(fact.subject["en"], fact.object["en"]) for fact in tables["month"]] == [
        (month, months[(index + 1) % 12]) for index, month in enumerate(months)
    ]
    units = {fact.subject["en"]: fact for fact in tables["unit"]}
    for name in ("week", "day", "hour", "minute"):
        fact = units[f"1 {name}"]
        assert timedelta(**{f"{name}s": 1}) == timedelta(**{fact.unit["en"]: int(fact.object["en"])})


def test_facts_are_whole_in_both_languages_and_wordings_differ():
    assert 60 <= sum(len(relation.facts) for relation in RELATIONS) <= 120
    for relation in RELATIONS:
        for language in LANGUAGES:
            assert 5 <= len(set(relation.questions[language])) == len(relation.questions[language]) <= 8
            subjects = [fact.subject[language] for fact in relation.facts]
            assert len(set(subjects)) == len(subjects)
            assert all(fact.subject[language] and fact.object[language] for fact in relation.facts)
            assert all("{s}" in wording for wording in relation.questions[language])


def test_each_language_is_written_in_its_own_letters(corpus: Corpus):
    for one in (*corpus.train, *corpus.held_out):
        assert bool(re.search("[\u4e00-\u9fff]", one.instruction)) == (one.language == "zh")


def test_sizes_and_balance(corpus: Corpus):
    assert Counter((one.kind, one.language) for one in corpus.held_out) == {
        (kind, language): HELD_OUT for kind in KINDS for language in LANGUAGES
    }
    trained = Counter((one.kind, one.language) for one in corpus.train)
    assert all(trained[kind, language] >= 300 for kind in KINDS for language in LANGUAGES)
    assert 6_000 <= len(corpus.train) <= 12_000
    assert 5_000 <= len(corpus.pretrain) <= 10_000
    assert len(set(corpus.pretrain)) == len(corpus.pretrain)


def test_held_out_questions_are_spread_over_topics(corpus: Corpus):
    relations = Counter(one.parts[0].split(":")[0] for one in corpus.held_out if one.kind == "facts")
    assert set(relations) == {relation.name for relation in RELATIONS}
    assert max(relations.values()) - min(relations.values()) <= 2
    signs = Counter(re.search("[+-]", one.parts[0])[0] for one in corpus.held_out if one.kind == "arithmetic")
    assert signs["-"] >= 20


@pytest.mark.parametrize("asked", ["你是谁？", "Who are you?", "你叫什么？", "你好！", "Hello!"])
def test_the_first_questions_of_every_user_are_trained(corpus: Corpus, asked: str):
    assert asked in {one.instruction for one in corpus.train}


def test_every_text_survives_a_tokenizer(corpus: Corpus):
    tokenizer = SparkTokenizer.load(GOLDEN)
    texts = [*corpus.pretrain, *(one.instruction for one in corpus.train), *(one.answer for one in corpus.train)]
    texts += [text for one in corpus.held_out for text in (one.instruction, *one.accepted)]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert not re.search(r"[<>\n\t\\]|  |^\s|\s$", text)
        assert 1 <= len(text) <= 250


@pytest.mark.parametrize(
    ("accepted", "answer", "right"),
    [
        (("3 + 5 = 8", "8"), "8", True),
        (("3 + 5 = 8", "8"), " 3 + 5 = 8. ", True),
        (("3 + 5 = 8", "8"), "18", False),
        (("3 + 5 = 8", "8"), "8 apples", False),
        (("3 + 5 = 8", "8"), "3 + 5 = 18", False),
        (("3 + 5 = 8", "8"), "5 + 3 = 8", False),
        (("The capital of France is Paris.", "Paris"), "Paris", True),
        (("The capital of France is Paris.", "Paris"), "The capital of France is Paris", True),
        (("The capital of France is Paris.", "Paris"), "not Paris", False),
        (("The capital of France is Paris.", "Paris"), "The capital of France is Paris. It is big.", False),
        (("The capital of France is Paris.", "Paris"), "法国的首都是巴黎。", False),
        (("The symbol of iron is Fe.", "Fe"), "fe", False),
        (("法国的首都是巴黎。", "巴黎"), "巴黎。", True),
        (("法国的首都是巴黎。", "巴黎"), "法国的首都是巴黎！\n", True),
        (("法国的首都是巴黎。", "巴黎"), "法国的首都不是巴黎。", False),
        (("法国的首都是巴黎。", "巴黎"), "", False),
        (("法国的首都是巴黎。", "巴黎"), "。", False),
    ],
)
def test_grading(accepted: tuple[str, ...], answer: str, right: bool):
    assert is_right(question(*accepted), answer) is right


def test_every_accepted_answer_is_right_and_other_questions_answers_are_wrong(corpus: Corpus):
    for one in corpus.held_out:
        assert all(is_right(one, answer) for answer in one.accepted)
        for other in corpus.held_out:
            if other.accepted[0] != one.accepted[0]:
                assert not is_right(one, other.accepted[0])


def test_the_files_hold_the_corpus_as_preprocess_reads_it(tmp_path: Path):
    corpus = build_corpus()
    files = write_corpus(corpus, tmp_path / "new" / "data")
    assert sorted(path.name for path in files.pretrain.parent.iterdir()) == [
        "held_out.jsonl",
        "pretrain.jsonl",
        "sft.jsonl",
    ]
    assert [document(record) for record in read_records(files.pretrain)] == corpus.pretrain
    assert [question_and_answer(record) for record in read_records(files.sft)] == [
        (one.instruction, one.answer) for one in corpus.train
    ]
    lines = [json.loads(line) for line in files.held_out.read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {"input": one.instruction, "accepted": list(one.accepted), "kind": one.kind, "language": one.language}
        for one in corpus.held_out
    ]
    first = json.loads(files.sft.read_text(encoding="utf-8").splitlines()[0])
    assert list(first) == ["instruction", "input", "output"]


def test_nothing_is_written_when_one_file_is_there_already(tmp_path: Path):
    (tmp_path / "held_out.jsonl").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        write_corpus(build_corpus(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["held_out.jsonl"]
    files = write_corpus(build_corpus(), tmp_path, force=True)
    assert files.held_out.read_text(encoding="utf-8").count("\n") == 8 * HELD_OUT


def test_a_file_that_fails_half_way_leaves_nothing_behind(tmp_path: Path):
    corpus = build_corpus()
    corpus.pretrain.append("half a character: \ud800")
    with pytest.raises(UnicodeEncodeError):
        write_corpus(corpus, tmp_path)
    assert list(tmp_path.iterdir()) == []
