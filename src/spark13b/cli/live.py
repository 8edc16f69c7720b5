"""The live view of running work on a terminal: a line with a bar, and what is known about it in columns below."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from spark13b.cli.meters import Count, duration

_REFRESH_A_SECOND = 4
_BAR, _SHORTEST_BAR = 20, 6
_INLINE = 3  # so few fields stand behind the bar, where there is room


class LiveView:
    """All meters that run at once, one below the other. A finished one stays on the screen when it was the last."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._meters: list[LiveMeter] = []
        self._live: Live | None = None

    @contextmanager
    def meter(self, what: str, total: float | None, unit: str) -> Iterator[LiveMeter]:
        """Show a meter while the block runs."""
        meter = LiveMeter(what, total, unit)
        self._meters.append(meter)
        if self._live is None:
            self._live = Live(
                self, console=self._console, refresh_per_second=_REFRESH_A_SECOND, vertical_overflow="crop"
            )
            self._live.start()
        try:
            yield meter
        finally:
            if len(self._meters) == 1:
                self._live.stop()
                self._live = None
            self._meters.remove(meter)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for meter in list(self._meters):  # the view is drawn by a thread of its own
            yield from meter.lines(options.max_width, options.ascii_only)


class LiveMeter(Count):
    """One piece of work."""

    def __init__(self, what: str, total: float | None, unit: str) -> None:
        super().__init__(what, total, unit)
        self._cell = 0  # only grows, so that the columns stay where they are

    def lines(self, width: int, ascii_only: bool = False) -> Iterator[Text]:
        """What to show in `width` columns; no line is longer."""
        fields = {name.replace("_", " "): value for name, value in self.fields.items()}
        left = self.seconds_left()
        head, tail = f"{self.what} {self}", "" if left is None else f"{duration(left)} left"
        inline = " ".join(f"{name} {value}" for name, value in fields.items()) if len(fields) <= _INLINE else ""
        if len(head) + len(inline) + len(tail) + _SHORTEST_BAR + 3 > width:
            inline = ""
        room = width - sum(len(part) + 1 for part in (head, inline, tail) if part)
        line = Text(head, no_wrap=True)
        if self.total is not None and room >= _SHORTEST_BAR:
            line.append(" ").append_text(self._bar(min(_BAR, room), ascii_only))
        for part in (inline, tail):
            if part:
                line.append(f" {part}")
        line.truncate(width, overflow="ellipsis")
        yield line
        if fields and not inline:
            yield from self._table(fields, width)

    def _bar(self, size: int, ascii_only: bool) -> Text:
        full = round(size * min(1.0, self.done / self.total)) if self.total else size
        done, rest = ("#", "-") if ascii_only else ("━", "─")
        return Text(done * full, style="green").append(rest * (size - full), style="bright_black")

    def _table(self, fields: dict[str, str], width: int) -> Iterator[Text]:
        """As many columns of `name value` as there is room for."""
        self._cell = max(self._cell, *(len(name) + len(value) + 1 for name, value in fields.items()))
        columns = max(1, width // (self._cell + 2))
        cells = list(fields.items())
        for start in range(0, len(cells), columns):
            line = Text(" ", no_wrap=True)
            for name, value in cells[start : start + columns]:
                line.append(" ").append(name, style="bright_black").append(f" {value}")
                line.append(" " * (self._cell - len(name) - len(value)))
            line.rstrip()
            line.truncate(width, overflow="ellipsis")
            yield line
