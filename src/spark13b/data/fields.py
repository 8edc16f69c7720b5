"""What the fields of a record mean: the text of a document, the turns of a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from spark13b.characters import WHOLE, half_character
from spark13b.data.clean import clean
from spark13b.data.place import excerpt
from spark13b.data.records import Record, kind_of
from spark13b.data.tokenizer import RET
from spark13b.errors import InputError, nearest

Format = Literal["alpaca", "sharegpt", "messages", "text"]
Turns = list[tuple[str, str]]  # question, answer

_DOCUMENT = ("output", "text")  # the first that a record has
_QUESTION = ("instruction", "input")  # written one after the other
_ANSWER = "output"
_LISTS: dict[Format, tuple[str, str, str]] = {  # field of the turns; in each turn, who and what
    "sharegpt": ("conversations", "from", "value"),
    "messages": ("messages", "role", "content"),
}
_OFTEN = {  # names that other tools give to the fields
    "instruction": ("prompt", "question", "query", "inputs"),
    "output": ("completion", "response", "answer", "target", "chosen"),
    "text": ("content", "document"),
}
_USER = {"human", "user", "observation", "tool", "function", "function_response"}
_ASSISTANT = {"gpt", "assistant", "bot", "model", "chatgpt", "function_call"}

FIELDS: dict[Format, frozenset[str]] = {  # what each format uses
    "alpaca": frozenset((*_QUESTION, _ANSWER, "history", "system")),
    "sharegpt": frozenset(("conversations", "system")),
    "messages": frozenset(("messages",)),
    "text": frozenset(_DOCUMENT),
}
_KNOWN = frozenset().union(*FIELDS.values())


def renamed(record: Record, names: Mapping[str, str]) -> Record:
    """The record with fields under other names: `names` tells for a name of ours that of the file."""
    if not any(theirs in record.fields for theirs in names.values()):
        return record
    fields = {name: value for name, value in record.fields.items() if name not in names.values()}
    fields |= {ours: record.fields[theirs] for ours, theirs in names.items() if theirs in record.fields}
    return Record(fields, record.place)


def format_of(record: Record) -> Format:
    """The format that a record's fields are those of; `alpaca` where nothing tells."""
    fields = record.fields
    for name, (turns, _, _) in _LISTS.items():
        if isinstance(fields.get(turns), list):
            return name
    return "text" if "text" in fields and not FIELDS["alpaca"] & fields.keys() else "alpaca"


def document(record: Record, form: Format | None = None) -> str:
    """The cleaned text of a pretraining record: its `output`, or else its `text`; of `form` alone where that is given.

    Raises InputError without it.
    """
    names = {"alpaca": _DOCUMENT[:1], "text": _DOCUMENT[1:]}.get(form or "", _DOCUMENT)
    for name in names:
        text = _text(record, name)
        if text is not None:
            return clean(text)
    raise _lacks(record, " or ".join(f"'{name}'" for name in names), names)


def turns_of(record: Record, form: Format | None = None) -> Turns:
    """The cleaned questions and answers of an instruction record, in order; `form` None: found out from its fields.

    What the system says stands before the first question. Turns of one side that follow each other are one; a question
    at the end, without an answer, is left out. Raises InputError for a record without a question and an answer.
    """
    form = form or format_of(record)
    if form == "text":
        raise record.place.error(
            "a text has no question and no answer", "use 'spark13b preprocess pretrain', or name its fields with --map"
        )
    turns = _alpaca(record) if form == "alpaca" else _listed(record, *_LISTS[form])
    system = _text(record, "system")
    if system is not None and clean(system):
        turns[0] = (clean(system) + RET + turns[0][0], turns[0][1])
    return turns


def question_and_answer(record: Record) -> tuple[str, str]:
    """The cleaned question (`instruction` + `input`) and answer (`output`) of an instruction record.

    A field that is null counts as absent. Raises InputError without an `output`, or with neither of the other two.
    """
    answer = _text(record, _ANSWER)
    if answer is None:
        raise _lacks(record, f"'{_ANSWER}'", (_ANSWER,))
    parts = [text for name in _QUESTION if (text := _text(record, name)) is not None]
    if not parts:
        raise _lacks(record, "'instruction' or 'input'", _QUESTION)
    return clean("".join(parts)), clean(answer)


def _alpaca(record: Record) -> Turns:
    last = question_and_answer(record)
    history = record.fields.get("history")
    if not history:
        return [last]
    pairs: list[Any] = history if isinstance(history, list) else [history]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise record.place.error(
                f"'history' must be a list of [question, answer]: {_shown(pair)}", 'write [["q", "a"], ...]'
            )
    return [(clean(_whole(record, question)), clean(_whole(record, answer))) for question, answer in pairs] + [last]


def _listed(record: Record, field: str, who: str, what: str) -> Turns:
    """The turns of a list of `{who: side, what: text}`."""
    said = record.fields.get(field)
    if not isinstance(said, list):
        if said is None:
            raise _lacks(record, f"'{field}'", (field,))
        raise record.place.error(f"'{field}' must be a list, this is {kind_of(said)}", "write it as [{...}, ...]")
    system: list[str] = []
    sides: list[tuple[bool, list[str]]] = []  # whether the user speaks, and what is said
    for turn in said:
        side = turn.get(who) if isinstance(turn, dict) else None
        if not isinstance(side, str):
            raise record.place.error(f"a turn of '{field}' has no '{who}': {_shown(turn)}", f"give each '{who}'")
        text = clean(_content(record, turn, field, what))
        if side == "system" or side == "developer":
            system.append(text)
        elif side in _USER or side in _ASSISTANT:
            user = side in _USER
            if sides and sides[-1][0] == user:
                sides[-1][1].append(text)
            else:
                sides.append((user, [text]))
        else:
            near = nearest(side, _USER | _ASSISTANT | {"system"})
            raise record.place.error(
                f"nobody is called '{side}' in '{field}'", f"write '{near}'" if near else "write user or assistant"
            )
    if not sides:
        raise record.place.error(f"nobody says anything in '{field}'", "remove the record")
    if not sides[0][0]:
        raise record.place.error(f"'{field}' does not begin with what the user says", "remove what stands before it")
    if len(sides) < 2:
        raise record.place.error(f"'{field}' has no answer", "add what the assistant says, or remove the record")
    texts = [RET.join(parts) for _, parts in sides]
    if system:
        texts[0] = RET.join((*system, texts[0]))
    return list(zip(texts[0::2], texts[1::2], strict=False))


def _content(record: Record, turn: dict[str, Any], field: str, what: str) -> str:
    """What a turn says: a text; of OpenAI's lists of parts the texts; the calls of tools as they are written."""
    value = turn.get(what)
    if value is None and turn.get("tool_calls"):
        return json.dumps(turn["tool_calls"], ensure_ascii=False)
    if isinstance(value, list) and value and all(isinstance(part, dict) and "text" in part for part in value):
        value = "".join(str(part["text"]) for part in value)
    if not isinstance(value, str):
        raise record.place.error(
            f"'{what}' in '{field}' must be a string, this is {kind_of(value)}: {_shown(turn)}", _a_text(value)
        )
    return _whole(record, value, what)


def _text(record: Record, name: str) -> str | None:
    value = record.fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise record.place.error(f"'{name}' must be a string, this is {kind_of(value)}", _a_text(value))
    return _whole(record, value, name)


def _a_text(value: Any) -> str:
    return "write one text" if value is None or isinstance(value, list | dict) else "write it in quotes"


def _whole(record: Record, text: str, name: str = "history") -> str:
    """The text, which has to consist of whole characters."""
    if half := half_character(text):
        raise record.place.error(f"'{name}' holds {half}", WHOLE)
    return text


def _shown(value: Any) -> str:
    return excerpt(json.dumps(value, ensure_ascii=False), 0)


def _lacks(record: Record, wanted: str, names: tuple[str, ...]) -> InputError:
    found = sorted(name for name, value in record.fields.items() if value is not None)
    near, elsewhere = _misspelt(found, names), _elsewhere(record, names)
    if elsewhere:
        options = " ".join(f"--map {ours}={theirs}" for ours, theirs in elsewhere.items())
        fix = f"if you mean {' and '.join(elsewhere.values())}, add {options}"
    else:
        fix = f"did you mean '{near[1]}' by '{near[0]}'?" if near else f"add {wanted}, or remove the record"
    return record.place.error(
        f"the record has no {wanted}; it has " + (", ".join(f"'{name}'" for name in found) or "no field at all"), fix
    )


def _elsewhere(record: Record, names: tuple[str, ...]) -> dict[str, str]:
    """Our name -> that under which the record seems to have it; of question and answer whichever it lacks."""
    lacks = [name for name in ("text",) if name in names]
    if not lacks:
        asked = any(record.fields.get(name) is not None for name in _QUESTION)
        lacks = [*(() if asked else _QUESTION[:1]), *(() if record.fields.get(_ANSWER) is not None else (_ANSWER,))]
    found = {ours: next((name for name in _OFTEN[ours] if record.fields.get(name)), None) for ours in lacks}
    return {ours: theirs for ours, theirs in found.items() if theirs is not None}


def _misspelt(found: list[str], names: tuple[str, ...]) -> tuple[str, str] | None:
    for name in found:
        near = None if name in _KNOWN else nearest(name, names)
        if near:
            return name, near
    return None


def all_texts(value: Any) -> list[str]:
    """Every string in a record's fields, nested ones too, uncleaned: what a tokenizer learns from."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for name, part in value.items() if name not in _NOT_TEXT for text in all_texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in all_texts(part)]
    return []


_NOT_TEXT = {"id", "role", "from"}  # marks, not language
