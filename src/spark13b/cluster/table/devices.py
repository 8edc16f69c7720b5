"""Which NPUs of a machine: ranges of logical numbers, and the physical numbers behind them."""

from __future__ import annotations

import re

from spark13b.errors import InputError

GROUP = 4  # cards of an 8-card Atlas are wired in two groups of so many
_RANGE = re.compile(r"\s*\[\s*(\d+)\s*,\s*(\d+)\s*\)\s*")
_GROUPED_MACHINE = 8


def chosen_devices(device_range: str | None, visible: str | None, devices_per_node: int) -> tuple[int, ...]:
    """The physical numbers of the devices `[first,last)`, logical numbers counted from 0 among the visible ones.

    Without a range all visible devices; without `visible` ("4,5,6,7") a machine shows all `devices_per_node`. Raises
    InputError for what does not exist, and for part of both groups of an 8-card machine.
    """
    physical = tuple(range(devices_per_node)) if visible is None else _visible(visible, devices_per_node)
    first, last = (0, len(physical)) if device_range is None else _range(device_range)
    where = "--device-num"
    if last > len(physical):
        shown = f"the machine has {devices_per_node} devices" if visible is None else f"{len(physical)} are visible"
        raise InputError(
            f"[{first},{last}) ends behind device {len(physical) - 1}: {shown}",
            where=where,
            fix="a range counts logical devices from 0; --devices-per-node 16 is for larger machines"
            if visible is None
            else f"a range counts logical devices: those of --visible-devices {visible} are 0 to {len(physical) - 1}",
        )
    crosses = first < GROUP < last
    if devices_per_node == _GROUPED_MACHINE and crosses and (first, last) != (0, _GROUPED_MACHINE):
        raise InputError(
            f"[{first},{last}) has devices of both groups of an 8-card machine, 0 to 3 and 4 to 7",
            where=where,
            fix="choose a range inside [0,4) or [4,8), or the whole machine [0,8); "
            "--devices-per-node N is for machines of another size",
        )
    return physical[first:last]


def apart(physical: tuple[int, ...], devices_per_node: int) -> bool:
    """Whether the cards lie in both groups of an 8-card machine and are not all of it."""
    groups = {number // GROUP for number in physical}
    return devices_per_node == _GROUPED_MACHINE and len(groups) > 1 and len(physical) < _GROUPED_MACHINE


def _range(text: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InputError(
            f"{text!r} is not a range of devices",
            where="--device-num",
            fix='write it half open, the last number is not part of it: --device-num "[0,8)" is 0 to 7',
        )
    first, last = int(match[1]), int(match[2])
    if first >= last:
        raise InputError(
            f"[{first},{last}) holds no device",
            where="--device-num",
            fix="the second number is the first device that is left out: [0,1) is device 0",
        )
    return first, last


def _visible(text: str, devices_per_node: int) -> tuple[int, ...]:
    where = "--visible-devices"
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise InputError(
            f"{text!r} is not a list of devices",
            where=where,
            fix="write physical numbers with commas between them, e.g. 4,5,6,7",
        )
    numbers = tuple(int(word) for word in words)
    for number in numbers:
        if number >= devices_per_node:
            raise InputError(
                f"a machine of {devices_per_node} devices has no device {number}",
                where=where,
                fix="give the size of the machine with --devices-per-node, e.g. 16",
            )
        if numbers.count(number) > 1:
            raise InputError(f"device {number} is there twice", where=where, fix="name every device once")
    return numbers
