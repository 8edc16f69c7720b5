"""Every inconsistency of a rank table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from spark13b.cluster.table.addresses import as_address
from spark13b.cluster.table.layouts import Card, Flaw, Machine, ReadTable, read_any

_NAMED = 5  # ranks that a message lists


def flaws_of(table: ReadTable, first_rank: int | None = 0) -> list[Flaw]:
    """All that is wrong with a table; ranks count from `first_rank`, None: from that of its first device."""
    found = [
        *table.flaws,
        *_servers(table.machines),
        *_devices(table.machines),
        *_addresses(table.machines),
        *_ranks(table.machines, first_rank),
    ]
    return list(dict.fromkeys(found))


def check_file(path: Path) -> tuple[ReadTable, list[Flaw]]:
    """The table in a file and all its flaws. Raises InputError for a file that holds no table."""
    table = read_any(path)
    return table, flaws_of(table)


def _servers(machines: Sequence[Machine]) -> Iterator[Flaw]:
    seen: dict[str, Machine] = {}
    for machine in machines:
        if machine.address is None:
            continue
        if not machine.address.strip():
            yield Flaw(f"{machine.at}.server_id", "is empty")
            continue
        name = as_address(machine.address) or machine.address
        first = seen.setdefault(name, machine)
        if first is not machine:
            yield Flaw(f"{machine.at}.server_id", f"server {name} stands at {first.at}, too")
    counts = {len(machine.cards) for machine in machines}
    if len(counts) > 1:
        each = ", ".join(f"{machine.address or machine.at} {len(machine.cards)}" for machine in machines)
        yield Flaw(_list_of(machines[0]), f"servers differ in their number of devices: {each}")


def _devices(machines: Sequence[Machine]) -> Iterator[Flaw]:
    for machine in machines:
        seen: dict[int, Card] = {}
        for card in machine.cards:
            if card.device is not None:
                first = seen.setdefault(card.device, card)
                if first is not card:
                    yield Flaw(
                        f"{card.at}.device_id",
                        f"device {card.device} of {machine.address or 'this server'} stands at {first.at}, too",
                    )


def _addresses(machines: Sequence[Machine]) -> Iterator[Flaw]:
    seen: dict[str, Card] = {}
    for machine in machines:
        for card in machine.cards:
            if card.address is None:
                continue
            address = as_address(card.address)
            if address is None:
                yield Flaw(f"{card.at}.device_ip", f"is {card.address!r}, which is no IP address")
                continue
            first = seen.setdefault(address, card)
            if first is not card:
                yield Flaw(f"{card.at}.device_ip", f"address {address} stands at {first.at}, too")


def _ranks(machines: Sequence[Machine], first_rank: int | None) -> Iterator[Flaw]:
    cards = [card for machine in machines for card in machine.cards]
    seen: dict[int, Card] = {}
    for card in cards:
        if card.rank is not None:
            first = seen.setdefault(card.rank, card)
            if first is not card:
                yield Flaw(f"{card.at}.rank_id", f"rank {card.rank} stands at {first.at}, too")
    if not seen:
        return
    start = min(seen) if first_rank is None else first_rank
    expected = range(start, start + len(cards))
    missing = [rank for rank in expected if rank not in seen]
    extra = sorted(rank for rank in seen if rank not in expected)
    if missing or extra:
        parts = [f"missing: {_some(missing)}"] if missing else []
        parts += [f"beyond: {_some(extra)}"] if extra else []
        yield Flaw("rank_id", f"{len(cards)} devices have ranks {start} to {expected[-1]}; {', '.join(parts)}")
        return
    last = None
    for card in cards:
        if card.rank is not None:
            if last is not None and card.rank < last:
                yield Flaw(
                    f"{card.at}.rank_id",
                    f"rank {card.rank} comes after rank {last}: ranks follow the order of servers and devices",
                )
            last = card.rank


def _list_of(machine: Machine) -> str:
    return machine.at.rpartition("[")[0]


def _some(ranks: Sequence[int]) -> str:
    text = ", ".join(map(str, ranks[:_NAMED]))
    return text + (f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else "")
