"""`concat`: a line for each example of a template, or the lines that are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spark13b.errors import InputError
from spark13b.persona.concat import concat
from spark13b.persona.frame import unframe


@pytest.fixture
def attribute(tmp_path: Path) -> Path:
    path = tmp_path / "attribute.json"
    path.write_text('{"姓名|名字": "小雅", "年龄": 20}', encoding="utf-8")
    return path


def template(folder: Path, *lines: Any) -> Path:
    path = folder / "T.jsonl"
    path.write_text(
        "".join((one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) + "\n" for one in lines),
        encoding="utf-8",
    )
    return path


def test_every_example_becomes_a_line(tmp_path: Path, attribute: Path) -> None:
    lines = template(tmp_path, {"input": "你几岁？", "target": "没有年龄"}, {"inputs": "a\nb", "target": "{}##"})
    assert concat(lines, attribute, tmp_path / "output.txt") == 2
    written = (tmp_path / "output.txt").read_bytes().decode().split("\n")
    assert written[-1] == "" and len(written) == 3
    found = [unframe(line) for line in written[:2]]
    assert [(one.persona, one.question, one.reference) for one in found if one] == [
        ({"姓名|名字": "小雅", "年龄": "20"}, "你几岁？", "没有年龄"),
        ({"姓名|名字": "小雅", "年龄": "20"}, "a\nb", "{}##"),
    ]


def test_half_a_character_in_an_attribute_is_told(tmp_path: Path, attribute: Path) -> None:
    attribute.write_text(r'{"姓名": "\ud800"}', encoding="utf-8")
    with pytest.raises(InputError, match="half a character"):
        concat(template(tmp_path, {"input": "a", "target": "b"}), attribute, tmp_path / "output.txt")


def test_all_broken_lines_are_named_and_nothing_is_written(tmp_path: Path, attribute: Path) -> None:
    good = {"input": "a", "target": "b"}
    lines = template(
        tmp_path, good, {"input": "a"}, {"input": 3, "target": "b"}, {"input": " ", "target": "b"}, good, "{oops"
    )
    with pytest.raises(InputError) as raised:
        concat(lines, attribute, tmp_path / "output.txt")
    message = str(raised.value)
    assert message.startswith("4 lines of the template are broken")
    for words in (
        'line 2: the line has no "target"',
        'line 3: "input" must be a string, this is a number',
        'line 4: "input" is empty',
        "line 6: this line is not JSON",
        f"at: {lines}:2",
    ):
        assert words in message
    assert not (tmp_path / "output.txt").exists()


def test_one_broken_line_is_named_with_its_cure(tmp_path: Path, attribute: Path) -> None:
    lines = template(tmp_path, {"input": "a", "target": "b"}, {"input": "a", "targets": "b"})
    with pytest.raises(InputError) as raised:
        concat(lines, attribute, tmp_path / "output.txt")
    assert raised.value.line == 2
    assert raised.value.fix == 'rename "targets" to "target"'


@pytest.mark.parametrize(("text", "what"), [("{}", "has no attributes"), ('{"姓名": " "}', "is empty")])
def test_empty_attributes_are_refused(tmp_path: Path, attribute: Path, text: str, what: str) -> None:
    attribute.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=what):
        concat(template(tmp_path, {"input": "a", "target": "b"}), attribute, tmp_path / "output.txt")


def test_an_output_is_replaced_only_by_force(tmp_path: Path, attribute: Path) -> None:
    lines = template(tmp_path, {"input": "a", "target": "b"})
    concat(lines, attribute, tmp_path / "output.txt")
    with pytest.raises(InputError, match="already exists"):
        concat(lines, attribute, tmp_path / "output.txt")
    assert concat(lines, attribute, tmp_path / "output.txt", force=True) == 1
