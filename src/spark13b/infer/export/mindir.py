"""Write the two MindIR graphs with everything that a program needs to run them, as one folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import psutil
from mindspore import Tensor, nn
from mindspore.train.mind_ir_pb2 import ModelProto

from spark13b import __version__
from spark13b.ckpt.adapters import fingerprint
from spark13b.ckpt.merging import merged
from spark13b.ckpt.metering import amount
from spark13b.ckpt.writing import check_room, full_disk
from spark13b.config.model import SparkConfig
from spark13b.data.tokenizer import MODEL_FILE
from spark13b.errors import InputError, JobError
from spark13b.files import check_writable, replacing
from spark13b.infer.export.check import check_export
from spark13b.infer.export.graphs import Decode, Prefill
from spark13b.infer.export.manifest import MANIFEST, Graph, Manifest, Port, digest, digests, ports_of
from spark13b.infer.export.shapes import ExportShapes
from spark13b.infer.session import FoundModel
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.device import device, dtype
from spark13b.model.names import expected_shapes, is_embedding, is_norm, match_names
from spark13b.progress import SILENT, Progress

_SHARED = "variables"  # the folder of weights too large for one file
_NOT_ON_A_CPU = ("compute_type", "embedding_init_type", "layernorm_compute_type", "softmax_compute_type")
# Memory, measured (docs/export.md): a process with MindSpore, and copies of the weights while the graphs are written
# and in the process that loads both
_PROCESS_BYTES = 600 * 10**6
_COPIES, _CHECK_COPIES = 1.6, 2.9
_GRAPH_BYTES = 1 << 20  # of a graph without weights and tables, a layer, generously


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    manifest: Manifest
    nbytes: int


def export_mindir(
    found: FoundModel,
    shapes: ExportShapes,
    output: Path,
    *,
    check: bool = True,
    force: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Export prefill and decode into the new folder `output`; adapters are folded into the weights.

    Raises InputError (a number format that this device cannot compute, a tokenizer of another model, `output` exists)
    and JobError (the disk is full, memory would be, the graphs do not answer as the model does); then nothing is left.
    """
    config, tokenizer = found.preset.model, found.tokenizer
    _check_formats(config)
    check_writable(output, force=force)
    needed = check_room(output, _room_needed(config, shapes))
    model, marks = _load(found, check, progress)
    graphs = ports_of(config, shapes)
    with replacing(output, force=force) as draft, full_disk(output, needed):
        draft.mkdir()
        with progress.track("exporting", 2, "graphs") as meter:
            files = []
            for cell, graph in zip((Prefill(model, shapes), Decode(model, shapes)), graphs, strict=True):
                files.append(_write_graph(cell, graph, draft))
                meter.advance()
        _share_weights(draft, files)
        (draft / "preset.yaml").write_text(found.preset.to_yaml(), encoding="utf-8")
        (draft / "tokenizer").mkdir()
        shutil.copyfile(tokenizer.where, draft / "tokenizer" / MODEL_FILE)
        template = found.preset.generation.prompt_template
        prefill, decode = (graph.model_copy(update={"file": file}) for graph, file in zip(graphs, files, strict=True))
        manifest = Manifest(
            versions={"spark13b": __version__, "mindspore": version("mindspore")},
            device=device(),
            preset="preset.yaml",
            tokenizer="tokenizer",
            weights_fingerprint=marks,
            batch_size=shapes.batch_size,
            prompt_length=shapes.prompt_length,
            context=shapes.context,
            slots=shapes.slots,
            window=config.sparse_local_size,
            vocab_size=config.vocab_size,
            prompt_template=template,
            end_id=tokenizer.end_id,
            pad_id=tokenizer.pad_id,
            prefill=prefill,
            decode=decode,
            check=None,
            sha256=digests(draft),
        )
        _write_manifest(draft, manifest)
        if check:
            progress.note("checking: the graphs run in a fresh process beside the model")
            result = check_export(draft, model, tokenizer, template, shapes)
            manifest = manifest.model_copy(update={"check": result})
            _write_manifest(draft, manifest)
        nbytes = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
    return Exported(output, manifest, nbytes)


def _load(found: FoundModel, check: bool, progress: Progress) -> tuple[SparkForCausalLM, str | None]:
    """The model with its adapters folded in, and the fingerprint of its weights."""
    config = found.preset.model
    if found.tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the tokenizer has {found.tokenizer.vocab_size} tokens, the model knows {config.vocab_size}",
            where=found.tokenizer.where,
            fix="use the tokenizer that the model was trained with",
        )
    with found.weights.open(config) as parts:
        doubt = parts.doubt()
        if doubt:
            progress.note(f"note: {doubt}")
        weights = parts.base if parts.adapters is None else merged(parts.base, parts.adapters)
        match_names(weights.shapes(), config, where=weights.path)  # before there is a model, perhaps of 13B
        _check_memory(config, check)
        model = SparkForCausalLM(config, seed=None)
        model.load_state(weights)
        return model, fingerprint(weights)


def _check_formats(config: SparkConfig) -> None:
    wrong = [name for name in _NOT_ON_A_CPU if getattr(config, name) == "bfloat16"]
    if wrong and device() == "cpu":
        raise InputError(
            "MindSpore computes no bfloat16 on a CPU, so the graphs can neither be made nor checked here",
            where=", ".join(f"model.{name}" for name in wrong),
            fix=f"add {' '.join(f'--set model.{name}=float16' for name in wrong)}, or export on the NPU",
        )


def _weights_bytes(config: SparkConfig) -> int:
    """Bytes of the weights as the model keeps them."""
    total = 0
    for name, shape in expected_shapes(config).items():
        kind = config.param_init_type
        if is_embedding(name):
            kind = config.embedding_init_type
        elif is_norm(name):
            kind = config.layernorm_compute_type
        total += prod(shape) * (4 if kind == "float32" else 2)
    return total


def _room_needed(config: SparkConfig, shapes: ExportShapes) -> int:
    """Bytes on the disk while both graphs have weights of their own."""
    tables = (config.seq_length + shapes.context) * config.head_size * 2 * 4
    return 2 * _weights_bytes(config) + tables + (config.num_layers + 1) * 2 * _GRAPH_BYTES


def _check_memory(config: SparkConfig, check: bool) -> None:
    """Raise JobError when a CPU's free memory cannot hold the export, before it is filled."""
    weights, free = _weights_bytes(config), psutil.virtual_memory().available
    exporting, checking = (int(_PROCESS_BYTES + copies * weights) for copies in (_COPIES, _CHECK_COPIES))
    needed = exporting + (checking if check else 0)
    if needed > free and device() == "cpu":
        spared = check and exporting <= free
        raise JobError(
            f"the memory is not enough: {amount(needed)} needed, {amount(free)} free",
            where="this machine",
            fix=f"add --no-check: {amount(exporting)} needed" if spared else "export on a machine with more memory",
        )


def _write_graph(cell: nn.Cell, graph: Graph, folder: Path) -> str:
    """Export one graph; the name of its file: beyond 1 GiB MindSpore puts the weights beside it and renames it."""
    inputs = [_zeros(port) for port in graph.inputs]
    mindspore.export(cell, *inputs, file_name=str(folder / graph.file), file_format="MINDIR")
    split = graph.file.replace(".mindir", "_graph.mindir")
    return graph.file if (folder / graph.file).is_file() else split


def _zeros(port: Port) -> Any:
    return Tensor(np.zeros(port.shape), dtype(port.dtype))


def _share_weights(folder: Path, files: list[str]) -> None:
    """Let both graphs read one copy of the weights where these stand beside them, and open the files to other users."""
    folders = [folder / file.replace("_graph.mindir", "_variables") for file in files]
    if all(part.is_dir() for part in folders):
        contents = [{path.name: digest(path) for path in part.iterdir()} for part in folders]
        if contents[0] == contents[1]:
            for file, part in zip(files, folders, strict=True):
                _point(folder / file, part.name)
            folders[0].rename(folder / _SHARED)
            shutil.rmtree(folders[1])
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # MindSpore leaves them readable by their owner alone


def _point(file: Path, old: str) -> None:
    """Change where a graph looks for its weights."""
    proto = ModelProto()
    proto.ParseFromString(file.read_bytes())
    for parameter in proto.graph.parameter:
        where = parameter.external_data
        where.location = where.location.replace(f"{old}/", f"{_SHARED}/")
    file.chmod(0o644)
    file.write_bytes(proto.SerializeToString())


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
