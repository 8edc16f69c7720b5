"""`spark13b export`: the model for a deployment (MindIR) or for other tools (safetensors)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark13b.cli import options
from spark13b.errors import InputError, nearest

if TYPE_CHECKING:
    from spark13b.infer.session import FoundModel

app = typer.Typer(add_completion=False)
_FORMATS = ("mindir", "safetensors")


@app.command(epilog="Example: spark13b export --load runs/sft --output exported --prompt-length 256 --context 1024")
def export(
    output: Annotated[Path, typer.Option("--output", help="The new folder.", show_default=False)],
    format: Annotated[
        str, typer.Option("--format", help="mindir: graphs of prefill and decode; safetensors: weights and config.")
    ] = "mindir",
    load: options.Load = None,
    preset: options.Preset = None,
    adapter: options.Adapter = None,
    tokenizer: options.Tokenizer = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="MindIR: texts at once; 1 if not given.")
    ] = None,
    prompt_length: Annotated[
        int | None,
        typer.Option("--prompt-length", help="MindIR: longest prompt in tokens; 128, or the context if that is less."),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", help="MindIR: longest text, prompt and answer; the model's if not given.")
    ] = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="MindIR: run the graphs in a fresh process, and compare their tokens with the model's (default).",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Safetensors: bfloat16, float16 or float32; else as they are stored.")
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            "--shard-size",
            metavar="SIZE",
            help="Safetensors: largest file, e.g. 2GB or 512MiB; a number alone is bytes \\[default: 5GB].",
            show_default=False,
        ),
    ] = None,
    assignments: options.Set = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a model for use without spark13b: graphs of fixed shapes, or weights with a configuration.

    Adapters are folded into the weights. Without --load the model of 'spark13b demo' is exported.
    """
    graph_options = {
        "--batch-size": batch_size,
        "--prompt-length": prompt_length,
        "--context": context,
        "--check/--no-check": check,
    }
    weight_options = {"--dtype": dtype, "--shard-size": shard_size}
    if format not in _FORMATS:
        near = nearest(format, _FORMATS)
        known = f"known are {' and '.join(_FORMATS)}"
        fix = f"did you mean '{near}'? {known}" if near else known
        raise InputError(f"there is no format '{format}'", where="--format", fix=fix)
    strange = weight_options if format == "mindir" else graph_options
    given = [option for option, value in strange.items() if value is not None]
    if given:
        other = "safetensors" if format == "mindir" else "mindir"
        raise InputError(f"{given[0]} is for --format {other}", where="--format", fix="leave one of them out")

    from spark13b.cli.console import TerminalProgress
    from spark13b.files import check_writable
    from spark13b.infer.session import find_model

    check_writable(output, force=force)
    alone = {"machine.devices": 1, "parallel.data_parallel": 1, "parallel.model_parallel": 1}  # one device runs it
    found = find_model(load, preset, tokenizer, alone, assignments or [], adapter)
    _spare_sources(output, found)
    if found.is_demo:
        TerminalProgress().note(f"no --load given: the model of 'spark13b demo' is exported ({found.weights.base})")
    if format == "safetensors":
        _export_weights(found, output, dtype, shard_size, force, as_json)
    else:
        wanted = (1 if batch_size is None else batch_size, prompt_length, context)
        _export_graphs(found, output, wanted, check is not False, force, as_json)


def _export_graphs(
    found: FoundModel,
    output: Path,
    wanted: tuple[int, int | None, int | None],
    check: bool,
    force: bool,
    as_json: bool,
) -> None:
    from spark13b.ckpt.metering import amount
    from spark13b.cli.console import TerminalProgress, print_json, stdout
    from spark13b.infer.export.shapes import shapes_of

    shapes = shapes_of(found.preset.model, *wanted)  # before MindSpore, which takes seconds

    from spark13b.infer.export.mindir import export_mindir

    done = export_mindir(found, shapes, output, check=check, force=force, progress=TerminalProgress())
    manifest = done.manifest
    if as_json:
        print_json(
            {"output": str(output), "format": "mindir", "bytes": done.nbytes, **manifest.model_dump(mode="json")}
        )
        return
    lines = [
        f"{output}: {manifest.prefill.file} and {manifest.decode.file}, {amount(done.nbytes)}",
        f"{shapes.batch_size} x {shapes.prompt_length} tokens of prompt, {shapes.context} in all, "
        f"rings of {shapes.slots} slots",
    ]
    if manifest.check is None:
        lines.append("not checked")
    else:
        checked = manifest.check
        lines.append(
            f"checked in a fresh process: {checked.tokens} tokens after {checked.prompts} prompts as the model's"
            + (f", {checked.ties} of them ties" if checked.ties else "")
            + (", one text past the rings" if checked.passed_window else "")
        )
        if not checked.passed_window and shapes.context > shapes.slots + 1:
            lines.append(f"no text was long enough to outgrow the rings: --prompt-length {shapes.least_past} would be")
    for line in lines:
        stdout().print(line, markup=False)


def _export_weights(
    found: FoundModel, output: Path, dtype: str | None, shard_size: str | None, force: bool, as_json: bool
) -> None:
    from spark13b.ckpt.metering import amount
    from spark13b.cli.console import TerminalProgress, print_json, stdout
    from spark13b.cli.sizes import bytes_of
    from spark13b.infer.export.hub import SHARD_SIZE, export_hub

    limit = SHARD_SIZE if shard_size is None else bytes_of(shard_size)
    done = export_hub(found, output, dtype=dtype, shard_size=limit, force=force, progress=TerminalProgress())
    written = done.written
    if as_json:
        values: dict[str, Any] = {
            "output": str(output),
            "format": "safetensors",
            "files": [str(file) for file in written.files],
            "tensors": written.tensors,
            "bytes": written.nbytes,
            "dtype": done.dtype,
        }
        print_json(values)
        return
    stdout().print(
        f"{output}: safetensors, {written.tensors:,} tensors, {amount(written.nbytes)}, {done.dtype}", markup=False
    )


def _spare_sources(output: Path, found: FoundModel) -> None:
    """Raise InputError when --force would remove what is exported."""
    weights = found.weights
    for source in (weights.base, weights.adapters, Path(found.tokenizer.where)):
        if source is not None and source.resolve().is_relative_to(output.resolve()):
            raise InputError("the output would replace its own source", where=output, fix="choose another --output")
