"""`spark13b-export.json`: what a program must know to run the exported graphs. Loads no MindSpore."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from spark13b.config.checked import Checked
from spark13b.config.model import SparkConfig
from spark13b.errors import InputError
from spark13b.infer.export.shapes import ExportShapes

MANIFEST = "spark13b-export.json"


class Port(Checked):
    """One input or output of a graph; MindIR keeps their order, not their names."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Graph(Checked):
    """One graph: its file, and what goes in and comes out, in order."""

    file: str
    inputs: list[Port]
    outputs: list[Port]


class Check(Checked):
    """What the run-back check compared."""

    prompts: int
    tokens: int = Field(description="tokens compared")
    ties: int = Field(description="tokens that differ where both choices are equally probable within rounding")
    passed_window: bool = Field(description="whether a text outgrew the rings, so that slots were written again")


class Manifest(Checked):
    """Everything about an export; the files are named relative to its folder."""

    kind: Literal["spark13b mindir"] = "spark13b mindir"
    version: Literal[1] = 1
    versions: dict[str, str] = Field(description="of spark13b and MindSpore")
    device: str = Field(description="where the graphs were made: cpu or ascend")
    preset: str
    tokenizer: str
    weights_fingerprint: str | None = Field(description="of the LayerNorms, as in the files of adapters")
    batch_size: int
    prompt_length: int
    context: int
    slots: int = Field(description="of the rings; position p of a text lies in slot p % slots")
    window: int
    vocab_size: int
    prompt_template: str
    end_id: int
    pad_id: int
    prefill: Graph
    decode: Graph
    check: Check | None = Field(description="null with --no-check")
    sha256: dict[str, str] = Field(description="of every other file")


def ports_of(config: SparkConfig, shapes: ExportShapes) -> tuple[Graph, Graph]:
    """Prefill and decode as `graphs.py` has them."""
    batch = shapes.batch_size
    ring = (batch, config.num_heads, shapes.slots, config.head_size)
    rings = [
        Port(name=f"{kind}.{layer}", dtype=config.compute_type, shape=ring)
        for kind in ("keys", "values")
        for layer in range(config.num_layers)
    ]
    outputs = [Port(name="logits", dtype="float32", shape=(batch, config.vocab_size)), *rings]
    prompts = [_whole_numbers("ids", batch, shapes.prompt_length), _whole_numbers("lengths", batch)]
    tokens = [_whole_numbers("ids", batch), _whole_numbers("positions", batch)]
    return (
        Graph(file="prefill.mindir", inputs=prompts, outputs=outputs),
        Graph(file="decode.mindir", inputs=[*tokens, *rings], outputs=outputs),
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises InputError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError("this is no folder of exported graphs", where=folder, fix="make one with 'spark13b export'")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"the manifest is broken: {key}: {first['msg']}", where=path, fix="export again") from error


def digests(folder: Path, but: Sequence[str] = (MANIFEST,)) -> dict[str, str]:
    """SHA-256 of every file in `folder`, by its name relative to it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in but:
            found[name] = digest(path)
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole_numbers(name: str, *shape: int) -> Port:
    return Port(name=name, dtype="int32", shape=shape)
