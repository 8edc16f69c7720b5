"""Any rank table, however wrong: what can be read of it, and what is wrong with the file itself.

Two layouts exist. MindSpore reads `server_list` (version 1.0). ModelArts writes `group_list` into jobstart_hccl.json:
groups of instances (pods) with `devices`, whose ranks follow the order of the pods' numbers; older tools wrote one
instance a device, with its `rank_id`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from spark13b.errors import InputError, nearest

Layout = Literal["server_list", "group_list"]
_NUMBER = re.compile(r"[0-9]{1,9}")
_KINDS = {str: "text", bool: "true or false", type(None): "null", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Flaw:
    """One thing that is wrong: at a place in the file, such as `server_list[1].device[0].rank_id`."""

    where: str
    what: str


@dataclass(frozen=True)
class Card:
    """One device as the file has it; None for what is missing or is no number."""

    at: str
    device: int | None
    address: str | None
    rank: int | None


@dataclass(frozen=True)
class Machine:
    """One server as the file has it; `pod` is its name in ModelArts' layout."""

    at: str
    address: str | None
    cards: tuple[Card, ...]
    pod: str | None = None


@dataclass
class ReadTable:
    """What could be read, in the order of the file, and the flaws met on the way."""

    path: Path
    layout: Layout
    machines: list[Machine] = field(default_factory=list)
    status: str | None = None
    flaws: list[Flaw] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The number of devices."""
        return sum(len(machine.cards) for machine in self.machines)


def read_any(path: Path) -> ReadTable:
    """Read a table of either layout. Raises InputError for a file that is not JSON or holds no table at all."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"the rank table cannot be read: {why}", where=path, fix="check the path") from error
    twice: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in items]
        twice.extend(dict.fromkeys(_printable(name) for name in names if names.count(name) > 1))
        return dict(items)

    try:
        values = json.loads(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise InputError("not a rank table: lists in lists without end", where=path) from error
    except json.JSONDecodeError as error:
        fix = "JSON has no comments, and no comma after the last element"
        raise InputError(f"not JSON: {error.msg}", where=path, line=error.lineno, fix=fix) from error
    if not isinstance(values, dict) or not ("server_list" in values or "group_list" in values):
        raise InputError(
            "not a rank table: it has neither server_list (MindSpore) nor group_list (ModelArts)",
            where=path,
            fix="'spark13b rank-table gen' makes one of this machine",
        )
    table = ReadTable(path, "server_list" if "server_list" in values else "group_list")
    table.flaws += [Flaw(name, "stands twice in the same object; the first value is lost") for name in twice]
    reader = _Reader(table)
    reader.read_servers(values) if table.layout == "server_list" else reader.read_groups(values)
    return table


class _Reader:
    """Walks the values of a file and notes what is not as it should be."""

    def __init__(self, table: ReadTable) -> None:
        self.table = table

    def flaw(self, where: str, what: str) -> None:
        self.table.flaws.append(Flaw(where, what))

    def read_servers(self, values: dict[str, Any]) -> None:
        """MindSpore's layout."""
        version = self.text(values, "version", "version")
        if version not in (None, "1.0"):
            self.flaw("version", f"is {version!r}; MindSpore's rank table is version '1.0'")
        self.status(values)
        for at, server in self.objects(values, "server_list", "server_list", "a server"):
            cards = [
                Card(
                    place,
                    self.number(device, "device_id", place),
                    self.text(device, "device_ip", f"{place}.device_ip"),
                    self.number(device, "rank_id", place),
                )
                for place, device in self.objects(server, "device", f"{at}.device", "a device")
            ]
            self.table.machines.append(Machine(at, self.text(server, "server_id", f"{at}.server_id"), tuple(cards)))
        self.count(values, "server_count", "", len(self.table.machines), "servers")

    def read_groups(self, values: dict[str, Any]) -> None:
        """ModelArts' layout, and the older one with an instance for each device."""
        self.status(values)
        groups = list(self.objects(values, "group_list", "group_list", "a group"))
        self.count(values, "group_count", "", len(groups), "groups")
        for at, group in groups:
            instances = list(self.objects(group, "instance_list", f"{at}.instance_list", "an instance"))
            self.count(group, "instance_count", at, len(instances), "instances")
            machines = [self.instance(place, instance) for place, instance in instances]
            devices = sum(len(machine.cards) for machine in machines)
            name = "device_num" if "device_num" in group else "device_count"
            self.count(group, name, at, devices, "devices")
            if "server_num" in group:
                servers = len({machine.address for machine in machines})
                self.count(group, "server_num", at, servers, "servers")
            self.table.machines += machines
        self.table.machines = _joined(self.table.machines)

    def instance(self, at: str, instance: dict[str, Any]) -> Machine:
        address = self.text(instance, "server_id", f"{at}.server_id")
        pod = instance.get("pod_name")
        rank = self.number(instance, "rank_id", at) if "rank_id" in instance else None
        cards = [
            Card(
                place,
                self.number(device, "device_id", place),
                self.text(device, "device_ip", f"{place}.device_ip"),
                rank,
            )
            for place, device in self.objects(instance, "devices", f"{at}.devices", "a device")
        ]
        if rank is not None and len(cards) > 1:
            self.flaw(f"{at}.rank_id", f"one rank for {len(cards)} devices")
        return Machine(at, address, tuple(cards), pod if isinstance(pod, str) else None)

    def status(self, values: dict[str, Any]) -> None:
        status = self.text(values, "status", "status")
        self.table.status = status
        if status not in (None, "completed"):
            self.flaw("status", f"is {status!r}: the table is not finished, MindSpore waits for 'completed'")

    def objects(self, values: dict[str, Any], name: str, where: str, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The place and value of each object of a list."""
        listed = values.get(name)
        if name not in values:
            self.missing(values, name, where)
        elif not isinstance(listed, list):
            self.flaw(where, f"is {_kind(listed)}, not a list")
        elif not listed:
            self.flaw(where, "is empty")
        for place, value in enumerate(listed if isinstance(listed, list) else []):
            if isinstance(value, dict):
                yield f"{where}[{place}]", value
            else:
                self.flaw(f"{where}[{place}]", f"is {_kind(value)}, not {what}")

    def text(self, values: dict[str, Any], name: str, where: str) -> str | None:
        if name not in values:
            self.missing(values, name, where)
            return None
        value = values[name]
        if isinstance(value, str):
            return _printable(value)
        self.flaw(where, f"is {_kind(value)}, not text in quotes")
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def number(self, values: dict[str, Any], name: str, at: str) -> int | None:
        """A number that the format wants as text; `at` is the place of `values`, empty at the top."""
        where = f"{at}.{name}" if at else name
        text = self.text(values, name, where)
        if text is None:
            return None
        if not _NUMBER.fullmatch(text):
            self.flaw(where, f"is {text!r}, not a number counted from 0")
            return None
        return int(text)

    def count(self, values: dict[str, Any], name: str, at: str, real: int, what: str) -> None:
        number = self.number(values, name, at)
        if number is not None and number != real:
            self.flaw(f"{at}.{name}" if at else name, f"is {number}, but the table holds {real} {what}")

    def missing(self, values: dict[str, Any], name: str, where: str) -> None:
        near = nearest(name, values)
        self.flaw(where, "is missing" + (f"; is {near!r} meant to be it?" if near and near != name else ""))


def _joined(instances: list[Machine]) -> list[Machine]:
    """Instances as machines with ranks: neighbours on one server are one; ranks that are not said follow the pods."""
    machines: list[Machine] = []
    rank = 0
    for instance in sorted(instances, key=lambda instance: _pod_number(instance.pod)):
        cards = tuple(
            card if card.rank is not None else replace(card, rank=rank + place)
            for place, card in enumerate(instance.cards)
        )
        rank += len(cards)
        before = machines[-1] if machines else None
        if before is not None and before.address is not None and before.address == instance.address:
            machines[-1] = replace(before, cards=before.cards + cards)
        else:
            machines.append(replace(instance, cards=cards))
    return machines


def _pod_number(pod: str | None) -> int:
    """The number at the end of a pod's name; instances without one keep their order."""
    match = re.search(r"(\d+)$", pod or "")
    return int(match[1]) if match else 0


def _printable(text: str) -> str:
    """The text without halves of characters, which JSON can escape and no terminal can show."""
    return text.encode(errors="replace").decode()


def _kind(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {value}"
    return _KINDS.get(type(value), type(value).__name__)
