"""`spark13b ckpt`: convert, look at, check, compare, cut and join checkpoints."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark13b.cli import options
from spark13b.cli.convert import AllowOverflow, EmbedBf16, LayernormBf16, Source, Target, finish, report

if TYPE_CHECKING:
    from spark13b.ckpt.tensors import Checkpoint

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Convert, inspect, verify, compare, split and merge checkpoints of every format.",
    epilog="Example: spark13b ckpt info weights, then spark13b ckpt convert weights hub --to safetensors",
)


class To(str, Enum):  # noqa: UP042  # typer shows the values of a str Enum
    """File formats."""

    ckpt = "ckpt"
    safetensors = "safetensors"
    torch = "torch"


class Keep(str, Enum):  # noqa: UP042
    """What of a checkpoint goes into the new one."""

    all = "all"
    weights = "weights"


Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha",
        min=0,
        help="The adapters' alpha, where the file does not say it: 128 in the original's presets.",
        show_default=False,
    ),
]
ShardSize = Annotated[
    str | None,
    typer.Option(
        "--shard-size",
        metavar="SIZE",
        help="Largest shard, e.g. 4GB or 512MiB; a number alone is bytes. DST is a folder.",
    ),
]
ToOption = Annotated[To | None, typer.Option("--to", help="File format; without it DST's suffix tells.")]


@app.command(epilog="Example: spark13b ckpt convert weights hub --to safetensors --shard-size 4GB")
def convert(
    source: Source,
    target: Target,
    to: ToOption = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="bfloat16, float16 or float32; without it as it is.")
    ] = None,
    embed_bf16: EmbedBf16 = False,
    layernorm_bf16: LayernormBf16 = False,
    allow_overflow: AllowOverflow = False,
    keep: Annotated[Keep, typer.Option("--keep", help="weights: cut off training state and adapters.")] = Keep.all,
    shard_size: ShardSize = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Change a checkpoint's file format. Names stay: see 'spark13b convert torch2ms' for torch's names."""
    from spark13b.ckpt.casting import target_dtype, with_dtype
    from spark13b.ckpt.conversion import chosen_format
    from spark13b.ckpt.conversion import convert as write
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.ckpt.selection import left_out, only
    from spark13b.cli.console import TerminalProgress
    from spark13b.cli.sizes import bytes_of

    progress = TerminalProgress()
    format = chosen_format(target, to.value if to else None)
    limit = bytes_of(shard_size) if shard_size is not None else None
    with open_checkpoint(source) as opened:
        wanted = opened
        if keep is Keep.weights:
            wanted = only(opened, ["weight"])
            dropped = left_out(list(opened), ["weight"])
            if dropped:
                progress.note(dropped)
        if dtype is not None:
            wanted = with_dtype(
                wanted,
                target_dtype(dtype),
                cast_embedding=embed_bf16,
                cast_norms=layernorm_bf16,
                allow_overflow=allow_overflow,
            )
        result = write(wanted, target, format, origin=source, shard_size=limit, force=force, progress=progress)
    finish(result, json, progress)


@app.command(epilog="Example: spark13b ckpt quantize weights weights-int4 --bits 4")
def quantize(
    source: Source,
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="A .safetensors file, or a folder for model.safetensors.")
    ],
    bits: Annotated[int, typer.Option("--bits", help="8 or 4, of each weight of the layers.")],
    group: Annotated[int, typer.Option("--group", help="Inputs that share a scale: 32, 64 or 128.")] = 64,
    embedding_bits: Annotated[
        int | None,
        typer.Option(
            "--embedding-bits",
            help="16 (bfloat16) or 8 \\[default: 8 with --bits 4, else 16].",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="NAME", help="Keep weights of this name in bfloat16; * stands for anything."),
    ] = None,
    shard_size: ShardSize = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Round weights to 8 or 4 bits, for answers on a CPU: less memory, and faster. Norms and biases stay float32."""
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.ckpt.quantized import QuantizedCheckpoint, kept_as
    from spark13b.ckpt.quantizing import Wanted, quantize_checkpoint
    from spark13b.ckpt.selection import left_out
    from spark13b.cli.console import TerminalProgress
    from spark13b.cli.sizes import bytes_of
    from spark13b.errors import InputError

    progress = TerminalProgress()
    if target.suffix not in ("", ".safetensors"):
        fix = "name a .safetensors file or a folder"
        raise InputError("quantised weights are written as safetensors", where=target, fix=fix)
    usual = Wanted.usual(bits)
    wanted = Wanted(bits, embedding_bits or usual.embedding_bits, group, tuple(keep or ()))
    limit = bytes_of(shard_size) if shard_size is not None else None
    with open_checkpoint(source) as opened:
        if isinstance(opened, QuantizedCheckpoint):
            before = kept_as(opened)
            progress.note(f"note: these are {before} already, and lose more: better take the weights they were made of")
        dropped = left_out(list(opened), ["weight"])
        if dropped:
            progress.note(dropped)
        result = quantize_checkpoint(
            opened, target, wanted, origin=source, shard_size=limit, force=force, progress=progress
        )
    finish(result, json, progress)


@app.command(epilog="Example: spark13b ckpt info weights")
def info(source: Source, json: options.Json = False) -> None:
    """Show what a checkpoint holds: tensors, shapes, number formats, parameters, and which presets it fits."""
    from spark13b.ckpt.inspecting import fitting_presets
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.cli.console import print_json

    with open_checkpoint(source) as checkpoint:
        summary = _summary(checkpoint, fitting_presets(checkpoint.shapes()))
        if json:
            tensors = [
                {"name": info.name, "shape": list(info.shape), "dtype": info.dtype.name}
                for info in checkpoint.infos.values()
            ]
            print_json({**summary, "tensors": tensors})
        else:
            _print_summary(summary, checkpoint)


@app.command(epilog="Example: spark13b ckpt verify weights --preset 800T-A2-infer")
def verify(
    source: Source, preset: options.Preset = None, assignments: options.Set = None, json: options.Json = False
) -> None:
    """Read every tensor and report damage, wrong names and shapes, nan and inf. Exit code 1 when anything is wrong."""
    from spark13b.ckpt.inspecting import problems
    from spark13b.ckpt.metering import amount
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.cli.console import TerminalProgress, print_json

    config = None
    if preset is not None:
        from spark13b.config import load_preset

        config = load_preset(preset, assignments=assignments or []).model
    elif assignments:
        from spark13b.errors import InputError

        raise InputError("--set changes values of a preset, and none is given", fix="add --preset")
    with open_checkpoint(source) as checkpoint:
        found = list(problems(checkpoint, config, progress=TerminalProgress()))
        checked = sum(map(checkpoint.has_checksum, checkpoint))
        if json:
            print_json(
                {
                    "path": str(source),
                    "sound": not found,
                    "tensors": len(checkpoint),
                    "with_checksum": checked,
                    "problems": [{"what": problem.what, "where": problem.where} for problem in found],
                }
            )
        else:
            for problem in found:
                print(problem.message())
            verdict = "sound" if not found else "1 problem" if len(found) == 1 else f"{len(found)} problems"
            checksums = "no checksums" if not checked else f"checksums of {checked:,}"
            nbytes = sum(nbytes for _, nbytes in checkpoint.formats().values())
            print(f"{source}: {verdict}; {len(checkpoint):,} tensors, {amount(nbytes)}, {checksums}")
    if found:
        raise typer.Exit(1)


@app.command(epilog="Example: spark13b ckpt diff weights weights-fp16")
def diff(
    one: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint.")],
    two: Annotated[Path, typer.Argument(metavar="B", help="Another one, of whatever format.")],
    json: options.Json = False,
) -> None:
    """Compare two checkpoints: names, shapes and values, whatever the number formats. Exit code 1 when they differ."""
    from dataclasses import asdict

    from spark13b.ckpt.differences import differences
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.cli.console import TerminalProgress, print_json

    with open_checkpoint(one) as first, open_checkpoint(two) as second:
        found = list(differences(first, second, progress=TerminalProgress()))
        common = sum(name in second for name in first)
        if json:
            print_json({"equal": not found, "common": common, "differences": [asdict(item) for item in found]})
        else:
            for item in found:
                gap = "" if item.absolute is None else f", largest {item.absolute:.3g}, relative {item.relative:.3g}"
                print(f"{item.name}: {item.how}{gap}")
            print(f"{len(found):,} differences; {common:,} tensors in both" if found else f"equal: {common:,} tensors")
    if found:
        raise typer.Exit(1)


@app.command(epilog="Example: spark13b ckpt split weights slices --data-parallel 2 --model-parallel 4")
def split(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="DST", help="A folder for rank_0/, rank_1/, ... and a manifest.")],
    data_parallel: Annotated[int, typer.Option("--data-parallel", min=1, help="Groups that see different rows.")] = 1,
    model_parallel: Annotated[int, typer.Option("--model-parallel", min=1, help="Devices that share a model.")] = 1,
    optimizer_shard: Annotated[
        bool, typer.Option("--optimizer-shard", help="Also cut Adam's state, over the data-parallel groups.")
    ] = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Cut a checkpoint into one slice a rank. SRC may itself be slices: then it is cut anew."""
    import time

    from spark13b.ckpt.conversion import Conversion, refuse_same
    from spark13b.ckpt.layout import Layout
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.ckpt.slices import write_slices
    from spark13b.cli.console import TerminalProgress

    layout = Layout(data_parallel, model_parallel, optimizer_shard)
    start = time.monotonic()
    with open_checkpoint(source) as checkpoint:
        refuse_same(source, target)
        written = write_slices(target, checkpoint, layout, force=force, progress=TerminalProgress())
    report(Conversion(source, target, f"slices of {layout.devices} ranks", written, time.monotonic() - start), json)


@app.command(epilog="Example: spark13b ckpt merge slices weights")
def merge(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with rank_0/, rank_1/, ...")],
    target: Target,
    strategy: Annotated[
        list[Path] | None,
        typer.Option("--strategy", help="MindSpore's strategy file, for slices it wrote; repeat it for each stage."),
    ] = None,
    to: ToOption = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Join the slices of all ranks into one complete checkpoint."""
    from spark13b.ckpt.conversion import chosen_format
    from spark13b.ckpt.conversion import convert as write
    from spark13b.ckpt.layout import MANIFEST
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.cli.console import TerminalProgress
    from spark13b.errors import InputError
    from spark13b.run_folder import weights_of

    format = chosen_format(target, to.value if to else None if target.suffix else "ckpt")
    if strategy:
        from spark13b.ckpt.strategies import merge_by_strategy

        result = merge_by_strategy(source, strategy, target, format, force=force, progress=TerminalProgress())
        report(result, json)
        return
    weights = weights_of(source)
    if weights.exists() and not (weights / MANIFEST).is_file():
        if weights.is_file() or not (weights / "rank_1").is_dir():
            fix = "'spark13b ckpt convert' writes it as one file, in the format that you like"
            raise InputError("these are no slices: the checkpoint is whole", where=weights, fix=fix)
        fix = "slices that MindSpore wrote need their strategy file: add --strategy FILE"
        raise InputError(f"there is no {MANIFEST} beside the slices", where=weights, fix=fix)
    with open_checkpoint(source) as slices:
        report(write(slices, target, format, origin=source, force=force, progress=TerminalProgress()), json)


@app.command(name="merge-lora", epilog="Example: spark13b ckpt merge-lora base runs/lora merged")
def merge_lora(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The base model: a checkpoint of whatever format.")],
    adapter: Annotated[
        Path,
        typer.Argument(metavar="ADAPTER", help="adapters.safetensors, a LoRA run, or BASE itself if it holds both."),
    ],
    target: Target,
    alpha: Alpha = None,
    to: ToOption = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="bfloat16, float16 or float32; without it the base's own.")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Fold LoRA adapters into their base: a model like any other, as fast as without adapters."""
    from spark13b.ckpt.adapters import open_adapters
    from spark13b.ckpt.casting import target_dtype, with_dtype
    from spark13b.ckpt.conversion import chosen_format, refuse_same
    from spark13b.ckpt.conversion import convert as write
    from spark13b.ckpt.merging import merged
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.ckpt.selection import left_out
    from spark13b.cli.console import TerminalProgress

    progress = TerminalProgress()
    format = chosen_format(target, to.value if to else None if target.suffix else "ckpt")
    wanted = target_dtype(dtype) if dtype is not None else None
    with open_checkpoint(base) as weights, open_adapters(adapter, alpha) as adapters:
        for note in (adapters.doubt(weights), left_out(list(weights), ["weight", "adapter"])):
            if note:
                progress.note(note)
        refuse_same(adapter, target)
        result = merged(weights, adapters, wanted)
        if wanted is not None:
            result = with_dtype(result, wanted)
        finish(write(result, target, format, origin=base, force=force, progress=progress), json, progress)


@app.command(
    name="extract-lora", epilog="Example: spark13b ckpt extract-lora rank_0.ckpt adapters.safetensors --alpha 128"
)
def extract_lora(
    source: Source,
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="A .safetensors file, or a folder for adapters.safetensors.")
    ],
    alpha: Alpha = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Cut LoRA adapters out of a checkpoint that also holds base and training state, as MindFormers writes them."""
    import time

    from spark13b.ckpt.adapters import ADAPTERS, open_adapters, write_adapters
    from spark13b.ckpt.conversion import Conversion, refuse_same
    from spark13b.cli.console import TerminalProgress
    from spark13b.errors import InputError

    if target.suffix not in ("", ".safetensors"):
        raise InputError(
            "adapters are written as safetensors", where=target, fix="name a .safetensors file or a folder"
        )
    start = time.monotonic()
    with open_adapters(source, alpha) as adapters:
        refuse_same(source, target)
        file = target if target.suffix else target / ADAPTERS
        written = write_adapters(file, adapters.tensors, adapters.card, force=force, progress=TerminalProgress())
        lora = adapters.lora
    what = f"LoRA adapters of rank {lora.rank}, alpha {lora.alpha:g}"
    report(Conversion(source, file, what, written, time.monotonic() - start), json)


def _summary(checkpoint: Checkpoint, presets: list[str]) -> dict[str, Any]:
    from spark13b.ckpt.inspecting import bytes_by_dtype, numbers_by_kind

    numbers = numbers_by_kind(checkpoint)
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "tensor_count": len(checkpoint),
        "parameters": numbers.get("weight", 0),
        "numbers": numbers,
        "bytes": sum(nbytes for _, nbytes in checkpoint.formats().values()),
        "bytes_by_dtype": bytes_by_dtype(checkpoint),
        "with_checksum": sum(map(checkpoint.has_checksum, checkpoint)),
        "metadata": dict(checkpoint.metadata),
        "presets": presets,
    }


def _print_summary(summary: dict[str, Any], checkpoint: Checkpoint) -> None:
    from spark13b.ckpt.inspecting import families
    from spark13b.ckpt.metering import amount
    from spark13b.ckpt.selection import KIND_NAMES

    rows = families(checkpoint.infos.values(), checkpoint.formats())
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        shape = "x".join(map(str, row.shape)) or "1"
        print(f"{row.name:{width}}  {shape:>13}  {row.dtype:<8}  {f'x {row.count}' if row.count > 1 else ''}".rstrip())
    formats = ", ".join(f"{name} {amount(size)}" for name, size in summary["bytes_by_dtype"].items())
    print(f"\n{summary['path']}: {summary['format']}, {summary['tensor_count']:,} tensors, {formats}")
    for kind, count in summary["numbers"].items():
        print(f"{'parameters' if kind == 'weight' else KIND_NAMES[kind]}: {count:,}")
    for name, text in summary["metadata"].items():
        print(f"{name}: {text}")
    checked, presets = summary["with_checksum"], summary["presets"]
    print(f"checksums: {f'{checked:,} tensors' if checked else 'none'}")
    print(f"fits presets: {', '.join(presets) or 'none of the built-in ones'}")
