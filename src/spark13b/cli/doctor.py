"""`spark13b doctor`: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from spark13b.cli import options

app = typer.Typer(add_completion=False)
_COLORS = {"ok": "green", "warn": "yellow", "missing": "dim", "fail": "bold red"}


@app.command(epilog="Example: spark13b doctor --preset 800T-A2-sft")
def doctor(
    preset: options.Preset = None,
    assignments: options.Set = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="S", help="Seconds that MindSpore may take.")
    ] = 60.0,
    as_json: options.Json = False,
) -> None:
    """Look at Python, packages, machine, Ascend parts and MindSpore, and whether a preset fits.

    Every line has a state: ok, warn, missing (and nothing here needs it) or fail. Exit code 1 when any is fail.
    """
    from spark13b.cli.console import print_json, stdout
    from spark13b.config import load_preset
    from spark13b.doctor import examine
    from spark13b.errors import InputError

    if assignments and preset is None:
        raise InputError("--set changes a preset, and none was given", where="--set", fix="add --preset NAME")
    values = None if preset is None else load_preset(preset, assignments=assignments or ())
    console = stdout()
    findings = []
    for finding in examine(values, seconds=timeout):
        findings.append(finding)
        if not as_json:
            from rich.text import Text

            line = Text(f"{finding.state:8}", style=_COLORS[finding.state])
            line.append(f"{finding.name:16}{finding.found}", style="not bold default")
            console.print(line)
            if finding.fix:
                console.print(Text(f"{'':24}-> {finding.fix}"))
    broken = [finding.name for finding in findings if finding.state == "fail"]
    if as_json:
        print_json({"healthy": not broken, "preset": preset, "findings": [asdict(finding) for finding in findings]})
    if broken:
        raise typer.Exit(1)
