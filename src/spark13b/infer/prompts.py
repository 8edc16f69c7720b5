"""What is asked: prompts from arguments, from lines, from a file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spark13b.characters import WHOLE, half_character
from spark13b.data.blocks import Block
from spark13b.data.json_array import read_array
from spark13b.data.place import Place
from spark13b.data.records import Record, read_records, records_of
from spark13b.errors import InputError, nearest
from spark13b.infer.conversation import ROLES, Turn

_TEXTS = ("instruction", "input", "inputs", "prompt", "text")
_ASKING = {*_TEXTS, "input_ids", "messages"}
_TAKEN = {*_ASKING, "system", "history"}
STDIN = Path("/dev/stdin")
_HINT = 'write {"input": "the question"}'


@dataclass(frozen=True)
class Prompt:
    """One question, a conversation up to a question, or the token ids of a whole prompt.

    `where` and `line` name it in errors. `others`: what else stands in its record, an id or a label for example.
    """

    text: str = ""
    ids: tuple[int, ...] | None = None
    turns: tuple[Turn, ...] = ()
    system: str = ""  # how the model is to answer this one
    where: str = "prompt"
    line: int | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> Any:
        """The question as it stands in the answer's record."""
        if self.turns:
            return [{"role": turn.role, "content": turn.content} for turn in self.turns]
        return self.text if self.ids is None else list(self.ids)

    @property
    def shown(self) -> str:
        """The question for a person."""
        return self.turns[-1].content if self.turns else str(self.asked)

    def error(self, what: str, fix: str) -> InputError:
        """An error that names this prompt."""
        return InputError(what, where=self.where, line=self.line, fix=fix)


def prompts_of(arguments: Iterable[str]) -> list[Prompt]:
    """The questions of command line arguments; `[q1##q2]`, as the original has it, is two. Raises InputError."""
    texts: list[str] = []
    for argument in arguments:
        inner = argument.strip()
        if inner.startswith("[") and inner.endswith("]") and "##" in inner:
            texts += [part.strip() for part in inner[1:-1].split("##")]
        else:
            texts.append(argument)
    prompts = [Prompt(text, where=f"prompt {number}") for number, text in enumerate(texts, 1)]
    for prompt in prompts:
        if not prompt.text.strip():
            raise prompt.error("the prompt is empty", "write a question")
        check_utf8(prompt.text, prompt.where)
    return prompts


def check_utf8(text: str, where: str | None = None) -> None:
    """Raise InputError when what was typed, or came through a pipe, holds bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # Python writes such a byte as U+DC00 and the byte
        byte = ord(text[error.start]) & 0xFF
        raise InputError(f"byte 0x{byte:02x} is not UTF-8", where=where, fix="convert the text to UTF-8") from None


def piped_prompts(text: str, as_file: bool = False) -> tuple[list[Prompt], bool]:
    """The prompts that came through a pipe, and whether they are records instead of a question a line.

    They are when the first line is one, a JSON object with a field that asks, or all is an array of such; other text
    may begin with a bracket, too. `as_file`: whenever they begin as JSON, as in a file without a suffix. Raises
    InputError.
    """
    text = text.removeprefix("\ufeff")
    first = text.lstrip().partition("\n")[0]
    if first.startswith("[") and (as_file or _asks(text)):
        data = io.BytesIO(text.encode(errors="surrogateescape"))
        values = [(place.line, value) for place, value in read_array(data.read, Place(STDIN, 1))]
        block = Block(STDIN, 1, None, "jsonl", values)
    elif first.startswith("{") and (as_file or _asks(first)):
        block = Block(STDIN, 1, text.encode(errors="surrogateescape"), "jsonl", [])
    else:
        return prompts_of(line.rstrip("\r") for line in text.split("\n") if line.strip()), False
    prompts = []
    for record in records_of(block):
        if isinstance(record, InputError):
            raise record
        prompts.append(_prompt(record))
    return prompts, True


def _asks(text: str) -> bool:
    """Whether a text is a record that asks something, or an array that begins with one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    value = value[0] if isinstance(value, list) and value else value
    return isinstance(value, dict) and not _ASKING.isdisjoint(value)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in order: JSON Lines or a JSON array of {"input": "..."}, or plain text, one a line.

    `inputs`, `prompt`, and `instruction` with `input` behind it, are taken as well, `messages` for a conversation as
    OpenAI's API has it, or `history` before the question, and `input_ids` for a prompt that is already in tokens.
    Raises InputError naming the line that has none.
    """
    return [_prompt(record) for record in read_records(path)]


def _prompt(record: Record) -> Prompt:
    fields, place = record.fields, record.place
    found: dict[str, Any] = {"where": str(place.path), "line": place.line, "others": _others(record)}
    system = fields.get("system") or ""
    if not isinstance(system, str):
        raise place.error('"system" is not a text', 'write {"system": "how to answer", "input": "the question"}')
    ids = fields.get("input_ids")
    if ids is not None:
        if not isinstance(ids, list) or not ids or not all(type(one) is int for one in ids):
            raise place.error('"input_ids" is not a list of token ids', 'write {"input_ids": [5, 17, 203]}')
        return Prompt(ids=tuple(ids), **found)
    if fields.get("messages") is not None:
        return Prompt(turns=_turns(record), system=system, **found)
    for name in _TEXTS:
        if name in fields:
            texts = [fields[name]]
            if name == "instruction" and fields.get("input"):
                texts.append(fields["input"])
            if all(isinstance(text, str) for text in texts) and "".join(texts).strip():
                question = "".join(texts)
                if fields.get("history"):
                    return Prompt(turns=(*_history(record), Turn("user", question)), system=system, **found)
                return Prompt(question, system=system, **found)
            raise place.error(f'the line has no text in "{name}"', _HINT)
    near = nearest("input", fields)
    raise place.error('the line has no "input"', f"rename '{near}' to \"input\"" if near else _HINT)


def _history(record: Record) -> Iterator[Turn]:
    """The turns before an alpaca record's question."""
    history = record.fields["history"]
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise record.place.error('"history" is not a list of [question, answer]', 'write {"history": [["q", "a"]]}')
        yield Turn("user", pair[0])
        yield Turn("assistant", pair[1])


def _turns(record: Record) -> tuple[Turn, ...]:
    """The turns of `messages`; the last one is the question."""
    place, messages = record.place, record.fields["messages"]
    fix = 'write {"messages": [{"role": "user", "content": "the question"}]}'
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise place.error('"messages" is not a list of messages', fix)
    turns = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise place.error(f'message {number} has no "role" of {", ".join(ROLES)}, or no text in "content"', fix)
        turns.append(Turn(role, content))
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if not spoken or (spoken[0], spoken[-1]) != ("user", "user"):
        raise place.error("a conversation begins and ends with what the user says", fix)
    return tuple(turns)


def _others(record: Record) -> dict[str, Any]:
    """The fields that are no prompt, as values of JSON: a table may hold dates, and nan, which becomes null."""
    text = json.dumps(record.fields, ensure_ascii=False, default=str)
    if half := half_character(text):
        raise record.place.error(f"the record holds {half}", WHOLE)
    return {
        name: value for name, value in json.loads(text, parse_constant=lambda _: None).items() if name not in _TAKEN
    }


def fingerprint_text(prompts: list[Prompt]) -> bytes:
    """The prompts as bytes, for a hash."""
    told = [
        [prompt.asked, prompt.system, prompt.others] if prompt.system or prompt.others else prompt.asked
        for prompt in prompts
    ]
    return json.dumps(told, ensure_ascii=False).encode()
