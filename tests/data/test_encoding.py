"""From records to token ids: which fields, how cleaned, how joined, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark13b.data.clean import clean
from spark13b.data.encoding import encode_documents, encode_examples
from spark13b.data.fields import all_texts
from spark13b.data.ledger import Ledger
from spark13b.data.place import Place
from spark13b.data.records import Record
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError

TOKENIZER = SparkTokenizer.load(Path(__file__).parents[1] / "golden" / "tokenizer")
END = TOKENIZER.end_id


def records(*fields: dict) -> list[Record]:
    return [Record(one, Place(Path("data.jsonl"), line)) for line, one in enumerate(fields, 1)]


def documents(*fields: dict) -> list[int]:
    return [token for chunk in encode_documents(records(*fields), TOKENIZER, Ledger()) for token in chunk.tolist()]


def examples(*fields: dict) -> list[tuple[list[int], list[int]]]:
    found = encode_examples(records(*fields), TOKENIZER, Ledger())
    return [(one.ids[: one.prompt_length].tolist(), one.ids[one.prompt_length :].tolist()) for one in found]


def refused(job, *fields: dict) -> InputError:
    with pytest.raises(InputError) as caught:
        list(job(records(*fields), TOKENIZER, Ledger()))
    return caught.value


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a \n", "a"),
        ("a\nb", "a<ret>b"),
        ("a\r\nb\r\n\r\nc", "a<ret>b<ret><ret>c"),
        ("a\rb", "a<ret>b"),
        (r"a\nb\r\nc", "a<ret>b<ret>c"),
        (r"\nabla", "<ret>abla"),
        ("\\n\r\n\\r\\n", "<ret><ret><ret>"),
        ("a\tb \\t", "a\tb \\t"),
        ("\u3000甲\u3000", "甲"),
        ("", ""),
    ],
)
def test_cleaning(text, cleaned):
    assert clean(text) == cleaned


def test_documents_are_output_or_else_text_and_end_with_end():
    assert documents({"output": "甲", "text": "乙"}, {"text": "丙"}, {"output": None, "text": "丁"}) == [
        *TOKENIZER.encode("甲"),
        END,
        *TOKENIZER.encode("丙"),
        END,
        *TOKENIZER.encode("丁"),
        END,
    ]


def test_an_empty_text_is_an_end_and_is_counted():
    ledger = Ledger()
    (chunk,) = encode_documents(records({"text": " \n"}, {"text": "a"}), TOKENIZER, ledger)
    assert chunk.tolist() == [END, *TOKENIZER.encode("a"), END]
    assert (ledger.read, ledger.kept, ledger.empty, ledger.characters) == (2, 2, 1, 1)


def test_prompt_and_answer_are_what_infer_asks_and_expects():
    ((prompt, answer),) = examples({"instruction": "问：", "input": "甲\\n乙 ", "output": "答\r\n案"})
    assert prompt == TOKENIZER.prompt_ids("问：甲\n乙")
    assert answer == [*TOKENIZER.encode("答\n案"), END]
    assert TOKENIZER.decode(prompt, skip_special=False) == "<User> 问：甲\n乙<end><Bot>"


def test_a_null_or_missing_input_is_an_empty_one():
    whole = examples({"instruction": "问", "input": "", "output": "答"})
    assert examples({"instruction": "问", "input": None, "output": "答"}) == whole
    assert examples({"instruction": "问", "output": "答"}) == whole
    assert examples({"instruction": None, "input": "问", "output": "答"}) == whole


def test_an_empty_answer_is_an_end_alone():
    ((_, answer),) = examples({"instruction": "问", "output": ""})
    assert answer == [END]


def test_braces_in_a_question_stay():
    ((prompt, _),) = examples({"instruction": "{} {0} {x}", "output": ""})
    assert "{} {0} {x}" in TOKENIZER.decode(prompt)


def test_many_records_are_encoded_as_one_by_one(monkeypatch):
    monkeypatch.setattr("spark13b.data.encoding._BATCH_CHARACTERS", 7)
    fields = [{"instruction": "问" * n, "output": "答" * (9 - n)} for n in range(9)]
    assert examples(*fields) == [one for field in fields for one in examples(field)]
    assert documents(*fields) == [token for field in fields for token in documents(field)]


@pytest.mark.parametrize(
    ("job", "fields", "what", "fix"),
    [
        (encode_examples, {"instruction": "a"}, "no 'output'; it has 'instruction'", "add 'output'"),
        (encode_examples, {"instruction": "a", "output": None}, "no 'output'; it has 'instruction'", "add 'output'"),
        (encode_examples, {"instruction": "a", "outputs": "b"}, "it has 'instruction', 'outputs'", "mean 'output' by"),
        (encode_examples, {"output": "b"}, "no 'instruction' or 'input'; it has 'output'", "add"),
        (encode_examples, {"text": "b"}, "no 'output'; it has 'text'", "add"),
        (encode_examples, {}, "no field at all", "add"),
        (encode_examples, {"instruction": "a", "output": 3}, "'output' must be a string, this is a number", "quotes"),
        (encode_documents, {"content": "a"}, "no 'output' or 'text'; it has 'content'", "mean 'text' by"),
        (encode_documents, {"text": ["a"]}, "'text' must be a string, this is an array", "quotes"),
        (encode_documents, {"text": "a\ud83d"}, "half a character: \\ud83d", "remove"),
    ],
)
def test_a_record_that_lacks_something_is_named(job, fields, what, fix):
    good = {"instruction": "a", "output": "b"}
    error = refused(job, good, fields)
    assert what in error.what
    assert fix in error.fix
    assert (error.where, error.line) == ("data.jsonl", 2)


def test_fields_that_are_not_used_are_counted():
    ledger = Ledger()
    fields = [{"instruction": "a", "output": "b", "history": [], "id": 3}, {"input": "a", "output": "b", "id": 4}]
    list(encode_examples(records(*fields), TOKENIZER, ledger))
    assert ledger.ignored_fields == {"history": 1, "id": 2}


def test_a_tokenizer_learns_from_every_text_of_a_record():
    fields = {
        "id": "x7",
        "instruction": "一",
        "history": [["二", "三"]],
        "conversations": [{"from": "human", "value": "四"}],
        "n": 5,
        "input": None,
    }
    assert all_texts(fields) == ["一", "二", "三", "四"]
