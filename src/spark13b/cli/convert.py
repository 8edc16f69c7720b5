"""`spark13b convert`: between torch's and MindSpore's names, and between number formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark13b.cli import options

if TYPE_CHECKING:
    from spark13b.ckpt.conversion import Conversion
    from spark13b.cli.console import TerminalProgress

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Convert weights between torch and MindSpore, and between number formats.",
    epilog="Example: spark13b convert torch2ms spark13b.pt weights, then spark13b infer --load weights",
)

Source = Annotated[Path, typer.Argument(metavar="SRC", help="A checkpoint: a file, shards, or a folder with rank_0/.")]
Target = Annotated[
    Path,
    typer.Argument(metavar="DST", help="A file when it ends in .ckpt, .safetensors, .pt, .pth or .bin; else a folder."),
]
EmbedBf16 = Annotated[bool, typer.Option("--embed-bf16", help="Convert the embedding too; else it is float32.")]
LayernormBf16 = Annotated[bool, typer.Option("--layernorm-bf16", help="Convert LayerNorms too; else they are float32.")]
AllowOverflow = Annotated[
    bool, typer.Option("--allow-overflow", help="Let numbers beyond the target's largest become infinite.")
]


@app.command(
    epilog="Example: spark13b convert torch2ms spark13b.pt weights makes weights/rank_0/model.ckpt, ready to be loaded."
)
def torch2ms(source: Source, target: Target, force: options.Force = False, json: options.Json = False) -> None:
    """Turn the released torch weights into a MindSpore checkpoint: names, fused and interleaved matrices."""
    from spark13b.ckpt.conversion import convert
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.ckpt.selection import NOT_BUFFERS, left_out
    from spark13b.ckpt.torch_names import from_torch
    from spark13b.ckpt.writing import format_of
    from spark13b.cli.console import TerminalProgress
    from spark13b.model.names import is_model_name

    progress = TerminalProgress()
    with open_checkpoint(source) as weights, from_torch(weights) as converted:
        _note(progress, left_out(list(weights), NOT_BUFFERS))
        strange = [name for name in converted if not is_model_name(name)]
        if strange:
            progress.note(f"note: {len(strange)} names are none of the model's, e.g. {strange[0]}")
        format = format_of(target) or "ckpt"  # weights-v1.5 is a folder
        report(convert(converted, target, format, origin=source, force=force, progress=progress), json)


@app.command(epilog="Example: spark13b convert ms2torch weights spark13b.pt")
def ms2torch(source: Source, target: Target, force: options.Force = False, json: options.Json = False) -> None:
    """Turn a MindSpore checkpoint back into torch's names and file: the exact inverse of torch2ms."""
    from spark13b.ckpt.conversion import convert
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.ckpt.selection import left_out
    from spark13b.ckpt.torch_names import to_torch
    from spark13b.ckpt.writing import format_of
    from spark13b.cli.console import TerminalProgress

    progress = TerminalProgress()
    with open_checkpoint(source) as weights, to_torch(weights) as converted:
        _note(progress, left_out(list(weights), ["weight"]))
        format = format_of(target) or "torch"
        report(convert(converted, target, format, origin=source, force=force, progress=progress), json)


@app.command(epilog="Example: spark13b convert dtype weights weights-fp16 --dtype float16")
def dtype(
    source: Source,
    target: Target,
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16, float16 or float32.")] = "bfloat16",
    embed_bf16: EmbedBf16 = False,
    layernorm_bf16: LayernormBf16 = False,
    allow_overflow: AllowOverflow = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Change the number format of the weights. Training state keeps its own; masks and caches are left out."""
    from spark13b.ckpt.casting import target_dtype, with_dtype
    from spark13b.ckpt.conversion import convert, same_format
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.ckpt.selection import NOT_BUFFERS, left_out, only
    from spark13b.cli.console import TerminalProgress

    progress = TerminalProgress()
    wanted = target_dtype(dtype)
    with open_checkpoint(source) as weights:
        _note(progress, left_out(list(weights), NOT_BUFFERS))
        converted = with_dtype(
            only(weights, NOT_BUFFERS),
            wanted,
            cast_embedding=embed_bf16,
            cast_norms=layernorm_bf16,
            allow_overflow=allow_overflow,
        )
        format = same_format(weights, target)
        finish(convert(converted, target, format, origin=source, force=force, progress=progress), json, progress)


def finish(result: Conversion, as_json: bool, progress: TerminalProgress) -> None:
    """Let weights of a run be loaded by their folder's name alone, and `report`."""
    from spark13b.run_folder import take_along

    run = take_along(result.source, result.target)
    report(result, as_json)
    if run is not None:
        progress.note(f"with the preset and the tokenizer of {run.path}: --load {result.target} finds them")


def report(result: Conversion, as_json: bool) -> None:
    """The summary of a conversion on stdout."""
    from spark13b.ckpt.metering import amount
    from spark13b.cli.console import duration, print_json, stdout

    if as_json:
        print_json(result.summary())
        return
    written = result.written
    rate = amount(written.nbytes / max(result.seconds, 1e-3))
    stdout().print(
        f"{result.target}: {result.format}, {written.tensors:,} tensors, {amount(written.nbytes)} "
        f"in {duration(result.seconds)} ({rate}/s)",
        markup=False,
    )


def _note(progress: Any, text: str | None) -> None:
    if text:
        progress.note(text)
