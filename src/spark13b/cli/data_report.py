"""How the report of a data job, and rows, look on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from spark13b.cli import console

if TYPE_CHECKING:
    from spark13b.data.inspecting import Look, Verified
    from spark13b.data.ledger import Ledger
    from spark13b.data.report import Report

_BAR = 40  # characters
_MOST = 3  # files that are repeated


def show_report(report: Report, output: Path, as_json: bool) -> None:
    """Print a report to stdout."""
    if as_json:
        console.print_json(asdict(report.ledger) | report.model_dump(exclude={"ledger"}))
        return
    names = report.output
    print(output if len(names) == 1 else f"{output.with_name(names[0])} to {names[-1]}")
    _lines([*_counts(report.ledger), *_more(report)])
    if report.held_out_ledger is not None:
        print(f"{output.with_name(report.held_out[0])} (held out)")
        _lines(_counts(report.held_out_ledger))
    if len(report.lengths) > 1:
        print("  lengths in tokens")
        most = max(report.lengths.values())
        width = max(map(len, report.lengths))
        for name, count in report.lengths.items():
            bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
            print(f"    {name:>{width}}  {bar} {count:,}".rstrip())


def _lines(lines: Iterable[tuple[str, str]]) -> None:
    for name, value in lines:
        print(f"  {name:9}  {value}")


def _counts(ledger: Ledger) -> Iterator[tuple[str, str]]:
    yield "read", f"{ledger.read:,}"
    yield "kept", f"{ledger.kept:,}  (packed {ledger.packed:,}, truncated {ledger.truncated:,}, split {ledger.split:,})"
    yield "dropped", f"{ledger.dropped:,}"
    for name, count, why in (
        ("doubles", ledger.duplicates, "said the same as one before"),
        ("bad", ledger.bad, "could not be used"),
        ("held out", ledger.held_out, "are in the rows for evaluation"),
        ("empty", ledger.empty, "without a text or an answer: they teach <end> alone"),
    ):
        if count:
            yield name, f"{count:,}  ({why})"
    yield "tokens", f"{ledger.tokens:,}  (learned {ledger.learned_tokens:,}, lost {ledger.lost_tokens:,})"
    yield "rows", f"{ledger.rows:,}"
    yield "fill rate", f"{ledger.fill_rate:.2%}"


def _more(report: Report) -> Iterator[tuple[str, str]]:
    yield "text", f"{report.characters_per_token:.2f} characters a token"
    if report.kind == "sft" or len(report.formats) > 1:
        yield "formats", ", ".join(f"{name} {count:,}" for name, count in sorted(report.formats.items()))
    if report.ledger.ignored_fields:
        fields = report.ledger.ignored_fields.items()
        yield "ignored", ", ".join(f"'{name}' in {count:,}" for name, count in sorted(fields))
    if report.repeated:
        files = "; ".join(", ".join(_counted(map(_shown, same))) for same in report.repeated[:_MOST])
        more = f" and {len(report.repeated) - _MOST:,} more" if report.repeated[_MOST:] else ""
        yield "repeated", f"{files}{more}  (the same bytes; --deduplicate keeps each record once)"
    if report.bad_records:
        yield "see", report.bad_records


def _shown(path: str) -> str:
    """A path from here, where it lies below."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _counted(names: Iterable[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        yield name if count == 1 else f"{name} {count} times"


def show_rows(look: Look, as_json: bool) -> None:
    """Print what is in a file."""
    if as_json:
        console.print_json(asdict(look))
        return
    from rich.console import Console
    from rich.text import Text

    _lines(
        [
            ("rows", f"{look.rows:,} of {look.row_length:,} tokens ({', '.join(look.columns)})"),
            *([("made by", f"preprocess {look.kind}")] if look.kind else []),
            *([("files", f"{look.files:,}")] if look.files > 1 else []),
        ]
    )
    out = Console(highlight=False, soft_wrap=True)
    for row in look.shown:
        learned = f"{row.learned:,} learned" if row.learned != row.tokens else "all learned"
        print(f"row {row.number}: {row.tokens:,} tokens, {learned}, {row.padding:,} padding")
        text = Text()
        for part in row.parts:
            text.append(part.text, style="green" if part.learned else "dim")
        out.print(text)


def show_verified(found: Verified, as_json: bool) -> None:
    """Print what a check has found."""
    if as_json:
        console.print_json(asdict(found))
        return
    _lines(
        [
            ("rows", f"{found.rows:,} of {found.row_length:,} tokens"),
            ("tokens", f"{found.tokens:,}  (learned {found.learned_tokens:,})"),
            ("fill rate", f"{found.fill_rate:.2%}"),
            ("ids", f"{found.lowest_id} to {found.highest_id}, of {found.vocab_size:,}"),
            ("manifest", "agrees" if found.manifest else "there is none"),
        ]
    )
