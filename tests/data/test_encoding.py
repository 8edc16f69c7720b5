"""From records to token ids: which fields, how cleaned, how joined, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark13b.data.blocks import Block
from spark13b.data.clean import clean
from spark13b.data.encoding import Encoded, Encoder, Kind, Recipe
from spark13b.data.fields import all_texts
from spark13b.data.tokenizer import PROMPT_TEMPLATE, SparkTokenizer
from spark13b.errors import InputError
from spark13b.infer.conversation import Turn, conversation_ids

TOKENIZER = SparkTokenizer.load(Path(__file__).parents[1] / "golden" / "tokenizer")
END = TOKENIZER.end_id


def encoded(kind: Kind, *fields: dict, **options) -> Encoded:
    """A block of records, in lines 1, 2, ..."""
    block = Block(Path("data.jsonl"), 1, None, "jsonl", list(enumerate(fields, 1)))
    return Encoder(Recipe(kind, TOKENIZER.model, **options), TOKENIZER).encode(block)


def documents(*fields: dict) -> list[int]:
    found = encoded("pretrain", *fields)
    assert not found.flaws
    return found.examples.ids.tolist()


def examples(*fields: dict, **options) -> list[tuple[list[int], list[int]]]:
    """The tokens that are not learned, and those that are, of each example."""
    found = encoded("sft", *fields, **options)
    assert not found.flaws
    ends = np.cumsum(found.examples.lengths)
    parts = [(end - size, end) for end, size in zip(ends, found.examples.lengths, strict=True)]
    ids, mask = found.examples.ids, found.examples.mask
    return [tuple(ids[a:b][mask[a:b] == flag].tolist() for flag in (0, 1)) for a, b in parts]


def refused(kind: Kind, *fields: dict) -> InputError:
    (flaw,) = encoded(kind, *fields).flaws
    return flaw


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
    found = encoded("pretrain", {"text": " \n"}, {"text": "a"})
    assert found.examples.ids.tolist() == [END, *TOKENIZER.encode("a"), END]
    assert (found.read, found.examples.empty.tolist(), found.examples.characters.tolist()) == (2, [True, False], [0, 1])


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
    ("kind", "fields", "what", "fix"),
    [
        ("sft", {"instruction": "a"}, "no 'output'; it has 'instruction'", "add 'output'"),
        ("sft", {"instruction": "a", "output": None}, "no 'output'; it has 'instruction'", "add 'output'"),
        ("sft", {"instruction": "a", "outputs": "b"}, "it has 'instruction', 'outputs'", "mean 'output' by"),
        ("sft", {"output": "b"}, "no 'instruction' or 'input'; it has 'output'", "add"),
        ("sft", {"prompt": "a", "completion": "b"}, "no 'output'", "--map instruction=prompt --map output=completion"),
        ("sft", {"question": "a", "output": "b"}, "no 'instruction' or 'input'", "add --map instruction=question"),
        ("sft", {"input": "a", "answer": "b"}, "no 'output'", "if you mean answer, add --map output=answer"),
        ("sft", {"text": "b"}, "a text has no question and no answer", "preprocess pretrain"),
        ("sft", {}, "no field at all", "add"),
        ("sft", {"instruction": "a", "output": 3}, "'output' must be a string, this is a number", "quotes"),
        ("pretrain", {"content": "a"}, "no 'output' or 'text'; it has 'content'", "--map text=content"),
        ("pretrain", {"txt": "a"}, "no 'output' or 'text'; it has 'txt'", "mean 'text' by"),
        ("pretrain", {"text": ["a"]}, "'text' must be a string, this is an array", "write one text"),
        ("pretrain", {"text": "a\ud83d"}, "half a character: \\ud83d", "remove"),
    ],
)
def test_a_record_that_lacks_something_is_named(kind, fields, what, fix):
    good = {"instruction": "a", "output": "b"}
    error = refused(kind, good, fields)
    assert what in error.what
    assert fix in error.fix
    assert (error.where, error.line) == ("data.jsonl", 2)


def test_fields_that_are_not_used_are_counted():
    fields = [{"instruction": "a", "output": "b", "tags": [], "id": 3}, {"input": "a", "output": "b", "id": 4}]
    assert encoded("sft", *fields).ignored_fields == {"tags": 1, "id": 2}


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


CHAT = [("你好", "你好！"), ("一加一？", "二"), ("再见", "慢走")]


def conversation(*said: str, name: str = "messages") -> dict:
    who, what, sides = {"messages": ("role", "content", ("user", "assistant"))}.get(
        name, ("from", "value", ("human", "gpt"))
    )
    return {name: [{who: sides[number % 2], what: text} for number, text in enumerate(said)]}


@pytest.mark.parametrize(
    "fields",
    [
        {"instruction": "再见", "output": "慢走", "history": [["你好", "你好！"], ["一加一？", "二"]]},
        conversation("你好", "你好！", "一加一？", "二", "再见", "慢走"),
        conversation("你好", "你好！", "一加一？", "二", "再见", "慢走", name="conversations"),
        conversation("你好", "你好！", "一加一？", "二", "再见", "慢走", "没有回答"),
    ],
    ids=["alpaca", "messages", "sharegpt", "a question at the end"],
)
def test_every_answer_of_a_conversation_is_learned_as_it_will_be_asked_for(fields):
    found = encoded("sft", fields).examples
    ids, mask = found.ids.tolist(), found.mask.tolist()
    turns = [Turn(role, text) for pair in CHAT for role, text in zip(("user", "assistant"), pair, strict=True)]
    for number in range(0, len(turns), 2):  # what stands before each answer is what `chat` asks the model with
        prompt = conversation_ids(TOKENIZER, PROMPT_TEMPLATE, turns[: number + 1])
        answer = [*TOKENIZER.encode(turns[number + 1].content), END]
        assert ids[: len(prompt) + len(answer)] == prompt + answer
        assert mask[len(prompt) - 1 : len(prompt) + len(answer)] == [0] + [1] * len(answer)
    assert len(ids) == len(prompt) + len(answer)
    assert sum(mask) == sum(len(TOKENIZER.encode(answer)) + 1 for _, answer in CHAT)


def test_what_the_system_says_stands_before_the_first_question():
    turns = conversation("问", "答")["messages"]
    one = examples({"messages": [{"role": "system", "content": "你是管家"}, *turns]})
    assert one == examples({"instruction": "问", "output": "答", "system": "你是管家"})
    assert one == examples(
        {"conversations": conversation("问", "答", name="conversations")["conversations"], "system": "你是管家"}
    )
    assert one == examples({"instruction": "你是管家\n问", "output": "答"})


def test_turns_of_one_side_are_one_and_tools_speak_for_their_sides():
    fields = {
        "conversations": [
            {"from": "human", "value": "天气？"},
            {"from": "function_call", "value": "看(今天)"},
            {"from": "observation", "value": "晴"},
            {"from": "gpt", "value": "晴天。"},
            {"from": "gpt", "value": "出门吧。"},
        ]
    }
    assert examples(fields) == examples(conversation("天气？", "看(今天)", "晴", "晴天。\n出门吧。"))


def test_a_list_of_parts_and_calls_of_tools_are_what_openai_writes():
    call = [{"id": "1", "function": {"name": "f"}}]
    fields = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "问"}]},
            {"role": "assistant", "content": None, "tool_calls": call},
        ]
    }
    assert examples(fields) == examples({"instruction": "问", "output": json.dumps(call)})


def test_fields_and_template_may_be_others():
    names = {"instruction": "q", "output": "a"}
    assert examples({"q": "问", "a": "答"}, names=names) == examples({"instruction": "问", "output": "答"})
    ((prompt, _),) = examples({"instruction": "问", "output": "答"}, template="<User> 请答：{}<end><Bot> ")
    assert TOKENIZER.decode(prompt, skip_special=False) == "<User> 请答：问<end><Bot>"


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"messages": []}, "nobody says anything in 'messages'"),
        ({"messages": [{"role": "user", "content": "问"}]}, "'messages' has no answer"),
        ({"messages": [{"role": "assistant", "content": "答"}]}, "does not begin with what the user says"),
        ({"messages": [{"role": "usr", "content": "问"}]}, "nobody is called 'usr'"),
        ({"messages": [{"content": "问"}]}, "a turn of 'messages' has no 'role'"),
        ({"messages": [{"role": "user", "content": 3}]}, "'content' in 'messages' must be a string"),
        ({"conversations": ["问"]}, "a turn of 'conversations' has no 'from'"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "must be a list of [question, answer]"),
        ({"instruction": "a", "output": "b", "history": "q"}, "must be a list of [question, answer]"),
        ({"instruction": "a", "output": "b", "system": 3}, "'system' must be a string"),
    ],
)
def test_a_conversation_that_cannot_be_learned_is_named(fields, what):
    error = refused("sft", {"instruction": "a", "output": "b"}, fields)
    assert what in error.what
    assert (error.where, error.line) == ("data.jsonl", 2)
    assert error.fix


def test_each_bad_record_is_told_and_the_others_are_encoded():
    block = Block(Path("a.jsonl"), 5, b'{"text": "a"}\n{"text": \n\xff\n\n[1]\n{"text": "b"}', "jsonl", [])
    found = Encoder(Recipe("pretrain", TOKENIZER.model), TOKENIZER).encode(block)
    assert [flaw.line for flaw in found.flaws] == [6, 7, 9]
    assert found.examples.lines.tolist() == [5, 10]
    assert found.read == 5


def test_a_text_longer_than_sentencepiece_is_given_at_once_has_the_same_tokens(monkeypatch):
    monkeypatch.setattr("spark13b.data.tokenizer._LONGEST", 64)
    for text in ("第一行\n" * 60, "the quick brown fox " * 20, ("天气很好\n" + "a word " * 7) * 20):
        whole = TOKENIZER._arrays([text.replace("\n", "<ret>")])[0].tolist()
        assert TOKENIZER.encode(text) == whole
    text = "天地玄黄宇宙洪荒" * 40  # nowhere to cut: other tokens, perhaps, and the same text
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_decoding_gives_back_the_cleaned_text(text):
    """But for what the tokenizer itself changes: spaces at the ends, and control tokens that people write."""
    plain = " ".join(re.sub(r"[<>\u2581\u2585]", "", text).replace("\\", "").replace("\0", "").split())
    (answer,) = (learned for _, learned in examples({"instruction": "q", "output": plain}))
    assert TOKENIZER.decode(answer) == clean(plain).replace("<ret>", "\n")


def test_rare_characters_come_back_through_byte_fallback():
    text = "🦄 𠮷野家 ė ﷽ \U0001f468\u200d\U0001f469"
    ((_, answer),) = examples({"instruction": "q", "output": text})
    assert TOKENIZER.decode(answer) == text
