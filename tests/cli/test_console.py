"""The view of running work: calm on a terminal of whatever width, plain lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from spark13b.cli import meters
from spark13b.cli.console import TerminalProgress, duration
from spark13b.cli.live import LiveMeter
from spark13b.cli.meters import Count

FIELDS = {
    "loss": "2.3142",
    "smoothed": "2.4011",
    "lr": "3.00e-05",
    "grad norm": "0.123",
    "tokens/s": "12,345",
    "MFU": "41%",
    "memory": "1.23 GiB",
    "eval": "2.2210",
    "skipped": "2",
}


class Clock:
    """Time that passes when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(meters.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def terminal(width: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=width, color_system=None, legacy_windows=False), out


def shown(meter: LiveMeter, width: int) -> list[str]:
    return [line.plain for line in meter.lines(width)]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_no_line_is_longer_than_the_terminal_and_no_value_is_lost(clock, width):
    meter = LiveMeter("training", 1050, "steps")
    for _ in range(3):
        clock.now += 1
        meter.advance(40)
    meter.show(**FIELDS)
    lines = shown(meter, width)
    assert all(len(line) <= width for line in lines)
    assert all(any(f"{name} {value}" in line for line in lines) for name, value in FIELDS.items())
    if width >= 40:
        assert "120/1,050 steps" in lines[0]
        assert "23s left" in lines[0]
        assert len(lines) <= 6


def test_columns_stay_where_they_are_when_values_get_shorter():
    meter = LiveMeter("training", 10, "steps")
    meter.show(**FIELDS)
    before = shown(meter, 80)[1].index("smoothed")
    meter.show(**{**FIELDS, "tokens/s": "9"})
    assert shown(meter, 80)[1].index("smoothed") == before


def test_a_few_fields_stand_behind_the_bar():
    meter = LiveMeter("reading", 100, "MB")
    meter.advance(40)
    meter.show(speed="300_MB/s")
    assert shown(meter, 60) == ["reading 40/100 MB ━━━━━━━━──────────── speed 300_MB/s"]
    assert [line.plain for line in meter.lines(60, ascii_only=True)] == [
        "reading 40/100 MB ########------------ speed 300_MB/s"
    ]


def test_a_meter_inside_another_shows_below_it_and_goes_while_the_outer_one_stays():
    console, out = terminal(60)
    progress = TerminalProgress(console)
    with progress.track("training", 4, "steps") as outer:
        outer.advance(2)
        with progress.track("evaluating", 8, "rows") as inner:
            inner.advance(8)
            progress._view._live.refresh()
        progress.note("step 2: evaluation loss 2.5")
        outer.advance(2)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "evaluating 8/8 rows" in text
    assert "step 2: evaluation loss 2.5\n" in text
    assert text.rstrip().splitlines()[-1].strip().startswith("training 4/4 steps")
    assert all(len(line) <= 60 for piece in text.split("\n") for line in piece.split("\r"))


def test_without_a_terminal_a_line_comes_every_five_seconds_and_at_the_end(clock):
    out = io.StringIO()
    progress = TerminalProgress(Console(file=out, width=40, soft_wrap=True))
    with progress.track("training", 10, "steps") as meter:
        for step in range(1, 11):
            clock.now += 2
            meter.show(loss=f"{step}.0", grad_norm="1")
            meter.advance()
    assert out.getvalue().splitlines() == [
        "training: 3/10 steps loss 3.0 grad norm 1 left 14s",
        "training: 6/10 steps loss 6.0 grad norm 1 left 8s",
        "training: 9/10 steps loss 9.0 grad norm 1 left 2s",
        "training: 10/10 steps loss 10.0 grad norm 1",
    ]


def test_what_a_resumed_run_had_done_before_does_not_count_for_the_time_left(clock):
    count = Count("training", 1000, "steps")
    count.advance(900)
    assert count.seconds_left() is None
    for _ in range(5):
        clock.now += 1
        count.advance(1)
    assert count.seconds_left() == pytest.approx(95)
    assert Count("reading", None, "MB").seconds_left() is None


@pytest.mark.parametrize(("seconds", "says"), [(42.4, "42s"), (185, "3m05s"), (7620, "2h07m")])
def test_durations_are_said_as_people_say_them(seconds, says):
    assert duration(seconds) == says
