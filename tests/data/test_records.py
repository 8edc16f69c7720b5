"""Reading records: each container, each way a file can be broken, and the line that the error names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark13b.data import json_array
from spark13b.data.place import Place
from spark13b.data.records import container_of, read_records
from spark13b.errors import InputError

RECORDS = [{"output": "甲"}, {"output": "二行\n里"}, {"text": "c", "n": [1, {"x": None}]}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[tuple[dict, int]]:
    return [(record.fields, record.place.line) for record in read_records(path)]


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        list(read_records(path))
    assert caught.value.where == str(path)
    assert caught.value.fix
    return caught.value


def test_an_array_a_record_a_line_and_text_give_records_with_their_lines(tmp_path):
    array = write(tmp_path / "a.json", json.dumps(RECORDS, ensure_ascii=False, indent=1))
    assert read(array) == [(RECORDS[0], 2), (RECORDS[1], 5), (RECORDS[2], 8)]
    lines = write(tmp_path / "b.jsonl", "\n\n".join(json.dumps(record) for record in RECORDS))
    assert read(lines) == [(RECORDS[0], 1), (RECORDS[1], 3), (RECORDS[2], 5)]
    text = write(tmp_path / "c.txt", "第一\n\n  \n[二]\n")
    assert read(text) == [({"text": "第一"}, 1), ({"text": "[二]"}, 4)]


def test_a_byte_order_mark_and_crlf_change_nothing(tmp_path):
    for name, content in [
        ("a.json", json.dumps(RECORDS, indent=1)),
        ("b.jsonl", "\n".join(json.dumps(record) for record in RECORDS)),
        ("c.txt", "一\n二\n"),
    ]:
        plain = write(tmp_path / name, content)
        expected = read(plain)
        dressed = write(tmp_path / ("bom-" + name), b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
        assert read(dressed) == expected


def test_the_content_decides_where_the_suffix_is_wrong(tmp_path):
    assert container_of(write(tmp_path / "a.json", ' {"text": "x"}\n')) == "jsonl"
    assert container_of(write(tmp_path / "a.jsonl", ' [{"text": "x"}]\n')) == "json"
    assert container_of(write(tmp_path / "data", "just text\n")) == "text"
    assert container_of(write(tmp_path / "note.txt", "[1] a footnote\n")) == "text"


def test_all_bytes_are_shown_on_the_way(tmp_path):
    for name, content in [("a.json", json.dumps(RECORDS) + "\n \n"), ("b.jsonl", '{"a": 1}\n\n'), ("c.txt", "一\n\n")]:
        path, seen = write(tmp_path / name, content), hashlib.sha256()
        list(read_records(path, seen.update))
        assert seen.hexdigest() == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
def test_empty_files_are_refused(tmp_path, name):
    assert "empty" in refused(write(tmp_path / name, "")).what
    assert "empty" in refused(write(tmp_path / "space.json", "\n \n")).what
    assert "no records" in refused(write(tmp_path / "array.json", "[ ]")).what
    assert "no records" in refused(write(tmp_path / "space.jsonl", "\n\n")).what


def test_what_is_no_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "none.json").what
    assert "folder" in refused(tmp_path).what
    assert "iconv" in refused(write(tmp_path / "u16.json", json.dumps(RECORDS).encode("utf-16"))).fix


@pytest.mark.parametrize("keep", range(1, 60))
def test_an_array_cut_off_anywhere_says_so_and_how_many_records_are_whole(tmp_path, keep):
    whole = json.dumps([{"output": "甲乙"}, {"output": "x"}], ensure_ascii=False).encode()
    content = whole[: min(keep, len(whole) - 1)]
    error = refused(write(tmp_path / "cut.json", content))
    records = 0 if keep <= whole.index(b"}") else 1 if keep < len(whole) - 1 else 2
    assert error.what == f"the JSON array is cut off after {records} whole record{'' if records == 1 else 's'}"
    assert error.line == 1


def test_a_cut_off_array_names_its_last_line(tmp_path):
    content = json.dumps([{"output": "a"}] * 5, indent=1)
    error = refused(write(tmp_path / "cut.json", content[: content.rindex('"a"') + 2]))
    assert (error.line, error.what) == (15, "the JSON array is cut off after 4 whole records")


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ('[{"a": 1},\n{"a": tru}\n]', 2, "record 2 is not JSON"),
        ('[{"a": 1}\n{"a": 2}]', 2, "instead of , or ]"),
        ('[\n\n{"a": "x\ny"}]', 3, "record 1 is not JSON"),
        ('[{"a": 1},\n]', 2, "record 2 is not JSON"),
        ('[{"a": 1}]\n[', 2, "more after the end"),
        ('[{"a": 1},\n "text"]', 2, "this is a string"),
        ('{"a": 1}\n{"a": 2\n', 2, "this line is not JSON"),
        ('{"a": 1}\n[2]\n', 2, "this is an array"),
        ("{\n", 1, "this line is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", 1, "not JSON"),
        ('[{"a": ' + "9" * 5000 + "}]", 1, "not JSON"),
        ('{"a": ' * 50_000 + "1" + "}" * 50_000, 1, "nested too deeply"),
        ("words", 1, "neither [ nor {"),
    ],
)
def test_broken_json_names_the_line(tmp_path, content, line, words):
    error = refused(write(tmp_path / "broken.json", content))
    assert error.line == line
    assert words in error.what


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'[{"a": 1},\n{"a": "\xd6\xd0"}]'),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xd6\xd0"}'),
        ("a.txt", b"one\n\xd6\xd0\n"),
    ],
)
def test_a_byte_that_is_not_utf8_names_its_line(tmp_path, name, content):
    error = refused(write(tmp_path / name, content))
    assert error.line == 2
    assert "0xd6 is not UTF-8" in error.what
    assert "iconv" in error.fix


TEXT = st.text(st.characters(codec="utf-8"))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.dictionaries(TEXT, JSON_VALUES, max_size=3), max_size=6),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(1, 40),
)
def test_an_array_read_in_small_pieces_is_what_json_reads(values, indent, ascii_only, size):
    rest = [json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()]

    def read_some(_: int) -> bytes:
        some, rest[0] = rest[0][:size], rest[0][size:]
        return some

    found = list(json_array.read_array(read_some, Place(Path("x"), 1)))
    assert [value for _, value in found] == values
