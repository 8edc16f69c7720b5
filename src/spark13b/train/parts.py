"""What a device holds of a model and of a batch: its parameters, and the sizes that the formulas of memory.py take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from spark13b.config.preset import Preset
from spark13b.config.sections import LoraConfig
from spark13b.model.attention.choose import block_size, plain_fits
from spark13b.model.mesh import Group, Mesh
from spark13b.model.names import adapter_shapes, expected_shapes
from spark13b.train.placement import Placement, placement

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Backend = Literal["plain", "blocked", "native", "ascend", "acctransformer"]


@dataclass(frozen=True)
class Stored:
    """One parameter as a device holds it: numbers, type, whether it is trained, where it lies."""

    name: str
    size: int
    type: str
    trained: bool
    placement: Placement
    own: int  # numbers whose optimizer state is here

    @property
    def bytes(self) -> int:
        return self.size * BYTES[self.type]


@dataclass(frozen=True)
class Part:
    """The sizes of one device's part; see the top of memory.py."""

    on_cpu: bool
    batch: int  # B, rows at once
    tokens: int  # T
    residual_rows: int  # n
    kept_rows: int  # rows of a block's input that are kept between recomputed blocks
    hidden: int  # C
    inner: int  # h
    half: int  # f
    vocabulary: int  # v
    heads: int
    layers: int
    compute: int  # s
    backend: Backend
    window: int
    adapter_rows: int  # numbers a token and layer that adapters keep
    dropped: int  # of the two outputs of a layer: how many have dropout

    @property
    def batch_tokens(self) -> int:
        """N"""
        return self.batch * self.tokens

    @property
    def scores(self) -> int:
        """Numbers of the scores that are held at once: of a layer (plain), of a block (blocked), none (fused)."""
        heads = self.batch * self.heads
        if self.backend == "plain":
            return heads * self.tokens * self.tokens
        if self.backend == "blocked":
            size = block_size(heads, self.tokens, self.window)
            return heads * size * _block_keys(self.window, size, self.tokens)
        return 0


def part_of(preset: Preset, tokens: int, batch: int | None = None) -> Part:
    """One device's part of the model and of a batch of rows of `tokens` tokens."""
    model, parallel, train = preset.model, preset.parallel, preset.train
    devices = parallel.model_parallel
    rows = batch or train.batch_size
    sequence = parallel.sequence_parallel and devices > 1
    sliced = sequence or (train.recompute_slice_activations and devices > 1)
    heads = model.num_heads // devices
    lora = preset.lora if preset.task == "lora" else None
    return Part(
        on_cpu=preset.machine.device == "cpu",
        batch=rows,
        tokens=tokens,
        residual_rows=rows * tokens // (devices if sequence else 1),
        kept_rows=rows * tokens // (devices if sliced else 1),
        hidden=model.hidden_size,
        inner=model.hidden_size // devices,
        half=model.ffn_hidden_size // 2 // devices,
        vocabulary=model.vocab_size // devices,
        heads=heads,
        layers=model.num_layers,
        compute=BYTES[model.compute_type],
        backend=attention_backend(preset, rows * heads, tokens),
        window=model.sparse_local_size,
        adapter_rows=0 if lora is None else lora.rank * len(adapter_shapes(model, lora)) // model.num_layers,
        dropped=2 if train.dropout else 0,
    )


def attention_backend(preset: Preset, heads: int, tokens: int) -> Backend:
    """The backend that `choose_backend` takes on the preset's machine, told without one; heads = B H of a device."""
    model, machine = preset.model, preset.machine
    if model.attention_backend != "auto":
        return model.attention_backend
    if model.compute_type != "float32":
        if machine.chip == "910B" and model.head_size % 16 == 0:
            return "ascend"
        if machine.chip == "910A" and model.compute_type == "float16" and model.sparse_local_size % 128 == 0:
            return "acctransformer"
    return "plain" if plain_fits(heads, tokens) else "blocked"


def mesh_of(preset: Preset) -> Mesh:
    """The mesh that the run will have, as its first process sees it."""
    parallel = preset.parallel
    return Mesh(
        Group(size=parallel.model_parallel),
        Group(size=parallel.data_parallel),
        Group(size=parallel.devices),
        parallel.sequence_parallel and parallel.model_parallel > 1,
    )


def stored_parameters(preset: Preset) -> list[Stored]:
    """Every parameter as the first device holds it; of a LoRA run the base is not trained, its adapters are."""
    mesh, lora = mesh_of(preset), preset.task == "lora"
    weights = [
        _stored(name, shape, stored_type(name, preset), not lora, preset=preset, mesh=mesh)
        for name, shape in expected_shapes(preset.model).items()
    ]
    return [*weights, *(stored_adapters(preset, preset.lora) if lora else ())]


def stored_adapters(preset: Preset, lora: LoraConfig) -> list[Stored]:
    """The adapters of `lora` as the first device holds them: float32, whatever the weights are."""
    mesh, shapes = mesh_of(preset), adapter_shapes(preset.model, lora)
    return [_stored(name, shape, "float32", True, preset=preset, mesh=mesh) for name, shape in shapes.items()]


def stored_type(name: str, preset: Preset) -> str:
    """The number format a parameter is kept in."""
    if name.endswith("embedding_table"):
        return preset.model.embedding_init_type
    if name.endswith((".gamma", ".beta")):
        return preset.model.layernorm_compute_type
    return preset.model.param_init_type


def _stored(name: str, shape: tuple[int, ...], kind: str, trained: bool, *, preset: Preset, mesh: Mesh) -> Stored:
    own = mesh.part_shape(name, shape)
    place = placement(name, own, mesh, preset.parallel.optimizer_shard)
    size = math.prod(own)
    return Stored(name, size, kind, trained, place, size // mesh.data.size if place.sharded else size)


def _block_keys(window: int, size: int, tokens: int) -> int:
    """Keys that a block of `size` queries of the blocked attention takes along: its own and the window's reach."""
    reach = math.ceil((window - 1) / size) * size
    return min(reach + size, math.ceil(tokens / size) * size)
