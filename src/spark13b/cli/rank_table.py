"""`spark13b rank-table`: make, merge, check and show the tables that tell MindSpore which device is which rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark13b.cli import options

if TYPE_CHECKING:
    from spark13b.cluster.rank_table import RankTable
    from spark13b.cluster.table.layouts import Flaw, ReadTable

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Make, merge, check and show rank tables (RANK_TABLE_FILE): which device of which machine is which rank.",
    epilog='Example: spark13b rank-table gen --device-num "[0,8)" --server-ip 10.0.0.1',
)

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="A file (ends with .json), or a folder in which it gets its usual name \\[default: this folder].",
        show_default=False,
    ),
]
TableFile = Annotated[Path, typer.Argument(metavar="FILE", help="MindSpore's or ModelArts' table.", show_default=False)]


@app.command("gen", epilog='Example: spark13b rank-table gen --device-num "[0,8)" --server-ip 10.0.0.1')
def gen(
    device_num: Annotated[
        str | None,
        typer.Option(
            "--device-num",
            metavar='"[A,B)"',
            help="Logical devices A to B-1 \\[default: all].",
            show_default=False,
        ),
    ] = None,
    visible_devices: Annotated[
        str | None,
        typer.Option(
            "--visible-devices",
            metavar="N,N,...",
            help="In a container: the physical number of each logical device, e.g. 4,5,6,7.",
            show_default=False,
        ),
    ] = None,
    server_ip: Annotated[
        str | None,
        typer.Option(
            "--server-ip",
            help="The address that other machines know this one by \\[default: its own].",
            show_default=False,
        ),
    ] = None,
    devices_per_node: Annotated[int, typer.Option("--devices-per-node", min=1, help="Devices of this machine.")] = 8,
    hccn_conf: Annotated[
        Path, typer.Option("--hccn-conf", metavar="FILE", help="Where addresses are that hccn_tool does not tell.")
    ] = Path("/etc/hccn.conf"),
    output: Output = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Make the table of this machine. Device addresses come from hccn_tool, else from /etc/hccn.conf."""
    from spark13b.cluster.table.making import make_table
    from spark13b.cluster.table.writing import made_name

    made = make_table(device_num, visible_devices, server_ip, devices_per_node, hccn_conf)
    notes = [f"addresses from {' and '.join(made.sources)}", *([f"note: {made.doubt}"] if made.doubt else [])]
    if server_ip is None:
        address = made.table.server_list[0].server_id
        notes.append(f"note: this machine is {address} in the table; --server-ip gives it another address")
    _write(made.table, output, made_name(made.table), notes, force, as_json)


@app.command("merge", epilog="Example: spark13b rank-table merge hccl_8p_01234567_10.0.0.{1,2}.json")
def merge(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="The machines' tables, in the order of their launch.", show_default=False
        ),
    ],
    output: Output = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Make one table of several machines' tables: ranks count from 0 in the order given.

    ModelArts' jobstart_hccl.json becomes MindSpore's layout, also when it is the only one.
    """
    from spark13b.cluster.table.merging import merge_tables
    from spark13b.cluster.table.writing import merged_name

    merged = merge_tables(tables)
    notes = [f"note: {merged.doubt}"] if merged.doubt else []
    _write(merged.table, output, merged_name(merged.table), notes, force, as_json, tables)


@app.command("check", epilog="Example: spark13b rank-table check hccl_2s_16p.json")
def check(table: TableFile, as_json: options.Json = False) -> None:
    """List everything that is inconsistent in a table, of whatever origin. Exit code 2 when anything is."""
    from spark13b.cluster.table.checking import check_file
    from spark13b.errors import InputError

    found, flaws = check_file(table)
    if as_json:
        _print_json({**_facts(found), "flaws": [{"where": flaw.where, "what": flaw.what} for flaw in flaws]})
    elif flaws:
        for flaw in flaws:
            print(f"{flaw.where}: {flaw.what}")
    else:
        print(f"{table}: fine. {_size(len(found.machines), found.size)}")
    if flaws:
        raise InputError(
            f"{_count(flaws)} in the rank table",
            where=table,
            fix="make the tables anew on their machines with 'spark13b rank-table gen', then merge them",
        )
    if found.layout == "group_list":
        _note([f"note: ModelArts' layout; 'spark13b rank-table merge {table}' makes MindSpore's of it"])


@app.command("show", epilog="Example: spark13b rank-table show hccl_2s_16p.json")
def show(table: TableFile, as_json: options.Json = False) -> None:
    """Draw a table: node, server, device, address and rank. A table with flaws is drawn as far as it can be read."""
    from spark13b.cluster.table.checking import check_file

    found, flaws = check_file(table)
    if as_json:
        _print_json({**_facts(found), "servers": _servers(found)})
    else:
        _draw(found)
    if flaws:
        _note([f"note: {_count(flaws)}; 'spark13b rank-table check {table}' lists all"])


def _write(
    table: RankTable,
    output: Path | None,
    name: str,
    notes: list[str],
    force: bool,
    as_json: bool,
    inputs: Sequence[Path] = (),
) -> None:
    """Write a table, over none of `inputs`, and say which device became which rank."""
    from spark13b.cluster.table.writing import output_path, table_text, table_values
    from spark13b.files import check_writable_file, write_text

    path = output_path(output, name)
    check_writable_file(path, force=force, inputs=inputs)
    write_text(path, table_text(table), force=force)
    _note(notes)
    if as_json:
        _print_json({"output": str(path), **table_values(table)})
        return
    print(f"{path}: {_size(len(table.server_list), table.size)}")
    for node, server in enumerate(table.server_list):
        devices = " ".join(device.device_id for device in server.device)
        ranks = " ".join(device.rank_id for device in server.device)
        first, last = server.ranks[0], server.ranks[-1]
        print(f"node {node} ({server.server_id}) runs ranks [{first}, {last + 1}): devices {devices} are ranks {ranks}")


def _draw(found: ReadTable) -> None:
    from rich.table import Table

    from spark13b.cli.console import stdout

    drawn = Table(title=f"{found.path.name} ({found.layout}, {found.status or 'no status'})", title_justify="left")
    for name, justify in (("node", "right"), ("server", "left"), ("device", "right"), ("address", "left")):
        drawn.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]  # one of rich's literals
    drawn.add_column("rank", justify="right")
    for node, machine in enumerate(found.machines):
        name = machine.address or "?"
        for place, card in enumerate(machine.cards):
            head = (str(node), name + (f" ({machine.pod})" if machine.pod else "")) if place == 0 else ("", "")
            drawn.add_row(*head, _shown(card.device), card.address or "?", _shown(card.rank))
        drawn.add_section()
    stdout().print(drawn)


def _shown(number: int | None) -> str:
    return "?" if number is None else str(number)


def _facts(found: ReadTable) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "layout": found.layout,
        "status": found.status,
        "server_count": len(found.machines),
        "device_count": found.size,
    }


def _servers(found: ReadTable) -> list[dict[str, Any]]:
    return [
        {
            "node": node,
            "server": machine.address,
            "pod": machine.pod,
            "devices": [{"device": card.device, "address": card.address, "rank": card.rank} for card in machine.cards],
        }
        for node, machine in enumerate(found.machines)
    ]


def _size(servers: int, devices: int) -> str:
    return f"{servers} server{'s' * (servers != 1)}, {devices} device{'s' * (devices != 1)}"


def _count(flaws: list[Flaw]) -> str:
    return "1 inconsistency" if len(flaws) == 1 else f"{len(flaws)} inconsistencies"


def _note(lines: list[str]) -> None:
    from spark13b.cli.console import TerminalProgress

    for line in lines:
        TerminalProgress().note(line)


def _print_json(value: Any) -> None:
    from spark13b.cli.console import print_json

    print_json(value)
