"""`spark13b preset`: list, show, check, compare and import presets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from spark13b.cli import options
from spark13b.cli.app import SparingFlags

if TYPE_CHECKING:
    from spark13b.config import Preset


class _Group(SparingFlags, TyperGroup):
    """The group `spark13b preset`."""


class _Command(SparingFlags, TyperCommand):
    """A command of it."""


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    help="List, show, check, compare and import presets: everything a run needs to know, in YAML.",
    epilog="Example: spark13b preset show cpu-tiny-sft --resolved > my.yaml, then spark13b preset check my.yaml",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A preset's name, or a YAML file.", show_default=False)]


@app.command("list", cls=_Command, epilog="Example: spark13b preset list")
def list_presets(as_json: options.Json = False) -> None:
    """List the built-in presets."""
    from spark13b.config import preset_descriptions

    descriptions = preset_descriptions()
    if as_json:
        _print_json([{"name": name, "description": text} for name, text in descriptions.items()])
        return
    width = max(map(len, descriptions))
    for name, text in descriptions.items():
        print(f"{name:{width}}  {text}")


@app.command("show", epilog="Example: spark13b preset show 800T-A2-sft --resolved --set model.seq_length=8192")
def show(
    name: Name,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Every value, with what is extended and the built-in defaults.")
    ] = False,
    assignments: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Show a preset as its file is written, or with every value (--resolved). Both are YAML that 'check' accepts."""
    from spark13b.config import documents
    from spark13b.config.library import find_preset
    from spark13b.errors import InputError

    if assignments and not resolved:
        raise InputError("--set changes values, but the file is shown as it is written", fix="add --resolved")
    if resolved:
        preset = _load(name, assignments)
        values, text = preset.model_dump(), preset.to_yaml()
    else:
        path = find_preset(name)
        text = documents.read_text(path)
        values = documents.read(path).values if as_json else {}  # a file that is not YAML can still be shown
    if as_json:
        _print_json(values)
    else:
        print(text, end="")


@app.command("check", epilog="Example: spark13b preset check my.yaml --set parallel.model_parallel=2")
def check(
    name: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, or a preset's name.", show_default=False)],
    assignments: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Check a preset: every wrong value is told at once (exit code 2), with the line it stands on and the cure."""
    from spark13b.config import notes

    preset = _load(name, assignments)
    remarks = notes(preset)
    if as_json:
        _print_json({"preset": name, "task": preset.task, "devices": preset.machine.devices, "notes": remarks})
        return
    parallel = preset.parallel
    print(
        f"{name}: fine. {preset.task} on {preset.machine.name}, devices {parallel.devices} "
        f"(data_parallel {parallel.data_parallel} x model_parallel {parallel.model_parallel})"
    )
    for remark in remarks:
        print(f"note: {remark}")


@app.command("diff", epilog="Example: spark13b preset diff 800T-A2-sft 800T-A2-persona")
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A preset's name, or a YAML file.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.", show_default=False)],
    assignments: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Show the values in which two presets differ, descriptions aside. --set changes B before the comparison."""
    from spark13b.config import differences

    different = differences(_load(a, None), _load(b, assignments))
    if as_json:
        _print_json([{"key": key, "a": ours, "b": theirs} for key, (ours, theirs) in different.items()])
    elif different:
        _print_table(["", a, b], [[key, *map(_written, pair)] for key, pair in different.items()])
    else:
        print("no difference")


@app.command(
    "import", epilog="Example: spark13b preset import run_iflytekspark_13b_sft_800T_A2_64G.yaml -o my-sft.yaml"
)
def import_original(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A MindFormers YAML of the original iFlytekSpark.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The preset to write.", show_default=False)],
    assignments: options.Set = None,
    force: options.Force = False,
) -> None:
    """Make a preset of one of the original's YAML files; what it cannot hold is listed on stderr with the reason."""
    from spark13b.cli.console import TerminalProgress
    from spark13b.config import notes
    from spark13b.config.mindformers import import_mindformers
    from spark13b.files import check_writable_file, write_text

    check_writable_file(output, force=force)
    imported = import_mindformers(source, assignments=assignments or ())
    write_text(output, imported.to_yaml(), force=force)
    note = TerminalProgress().note
    for key, reason in imported.left_out:
        note(f"{key}: {reason}")
    for remark in notes(imported.preset):
        note(f"note: {remark}")
    note(f"wrote {output}: {imported.preset.task} on {imported.preset.machine.name}")


def _load(name: str, assignments: list[str] | None) -> Preset:
    from spark13b.config import load_preset

    return load_preset(name, assignments=assignments or ())


def _print_json(value: Any) -> None:
    from spark13b.cli.console import print_json  # rich takes longer to load than the list to print

    print_json(value)


def _written(value: Any) -> str:
    """A value as a preset file writes it."""
    from spark13b.config import documents

    return documents.dump({"": value}).partition(": ")[2].rstrip("\n")


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    """Aligned columns; where they do not fit the terminal, a key on one line and both values below it."""
    import shutil

    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    fits = sum(widths) + 2 * (len(widths) - 1) <= shutil.get_terminal_size().columns
    for row in table if fits else rows:
        if fits:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        else:
            print(row[0], *(f"  {name}: {cell}" for name, cell in zip(head[1:], row[1:], strict=True)), sep="\n")
