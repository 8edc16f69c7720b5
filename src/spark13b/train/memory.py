"""How much memory a device needs, by arithmetic alone: no tensor is made, no device asked. docs/memory.md explains it.

All formulas are in bytes a device, with the sizes of its own part: N = B T tokens of one batch, of which it holds n
rows of the residual stream (N / model_parallel under sequence parallelism, else N); C hidden_size; h = C, f = F / 2 and
v = V, each divided by model_parallel; H its heads; L layers; s bytes of a number of the compute type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from spark13b.ckpt.dtypes import FLOAT32
from spark13b.ckpt.quantizing import Wanted
from spark13b.ckpt.tensors import TensorInfo
from spark13b.config.model import SparkConfig
from spark13b.config.preset import Preset
from spark13b.model.attention.choose import block_size, plain_fits
from spark13b.model.mesh import Group, Mesh
from spark13b.model.names import adapter_shapes, expected_shapes
from spark13b.train.native_memory import native_process, native_step, native_trainer
from spark13b.train.placement import Placement, placement

PART_TOKENS = 512  # of a prompt are read at once, `chunk` of infer/engine.py
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_FUSED_STATISTICS = 2 * 8 * 4  # bytes a token and head: maximum and sum of the softmax, 8 float32 each
_MASK = 2048 * 2048  # bytes of the compressed mask that the fused kernels take

# What a CPU keeps, measured (docs/memory.md): MindSpore starts an operator there as soon as its inputs are ready, so
# the backward pass's own products of forward values are made, and held, early. Numbers a token and layer.
_CPU_WIDE = 23  # times C
_CPU_NARROW = 7  # times f
_CPU_SCORES = 1.25  # times H T, the scores of the plain attention
_CPU_AROUND = 9  # times C a token: the last norm, the embedding and gradients on their way
_CPU_BLOCKS = 16  # times the scores of one block of the blocked attention, while a layer goes backward
# The process: Python, MindSpore's libraries and what its compiler takes for a training graph of L layers.
_CPU_PROCESS = 543 * 2**20
_CPU_GRAPH = 168 * 2**20  # a layer
_CPU_GRAPH_SQUARE = 10 * 2**20  # times (L - 1) (L - 2)
_CPU_ANSWERING = 600 * 2**20  # and of prefill and decode
_CPU_ANSWERING_GRAPH = 30 * 2**20  # a layer
_NATIVE_PROCESS = 200 * 2**20  # Python, NumPy and the native library, without MindSpore
_ASCEND_RESERVE = 2**30  # workspace of kernels and what no formula here knows; not measured

Backend = Literal["plain", "blocked", "native", "ascend", "acctransformer"]


@dataclass(frozen=True)
class Memory:
    """Bytes a device. `total` is the largest moment; gradients and activations are not at their largest together."""

    weights: int
    gradients: int
    optimizer: int  # Adam's m and v, and float32 masters
    activations: int  # at most at once: what is kept for the backward pass, and what is at work
    cache: int  # keys and values while answering
    runtime: int  # the process on a CPU, a reserve on an Ascend
    total: int
    moment: str  # when it is that much
    activations_with_recompute: int | None  # None: nothing is trained
    activations_without_recompute: int | None


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
    """The sizes of one device's part; see the top of the file."""

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


def training_memory(preset: Preset, tokens: int) -> Memory:
    """What training on rows of `tokens` tokens needs on each device; on a CPU of what computes it here."""
    train, stored, part = preset.train, stored_parameters(preset), part_of(preset, tokens)
    native, _ = native_trainer(preset)
    trained = [one for one in stored if one.trained]
    accumulated = train.accumulation_steps > 1
    weights = sum(one.bytes for one in stored)
    # one float32 sum a parameter when gradients are accumulated, beside those of the batch at work
    gradients = sum(one.bytes for one in trained) + (4 * sum(one.size for one in trained) if accumulated else 0)
    masters = preset.optimizer.master_weights
    optimizer = sum(one.own * (12 if masters and one.type != "float32" else 8) for one in trained)
    if native is not None:
        runtime = native_process(preset, len(trained))
    else:
        runtime = cpu_process(part.layers) if part.on_cpu else _ASCEND_RESERVE

    def activations(recompute: bool) -> dict[str, tuple[int, int]]:
        """Moment -> activations and gradients then."""
        if native is not None:  # its memory stays, and it updates in place; what it does not do is MindSpore's
            step, shared = native_step(native, preset, tokens, recompute), preset.parallel.data_parallel > 1
            work = update_work(trained, part.on_cpu) if accumulated or shared else 0
            return {"the backward pass": (step, gradients), "the update": (step + work, gradients)}
        kept = part.layers * (kept_between_layers(part) if recompute else kept_in_layer(part))
        in_layer = kept_in_layer(part) if recompute else 0
        work = in_layer + backward_of_layer(part) + casts(preset, stored, part, recompute)
        first = kept // part.layers + work
        sums = gradients - sum(one.bytes for one in trained)
        return {
            "the loss": (kept + around_layers(part) + loss_work(part), sums),
            "the last layer's backward pass": (kept + around_layers(part) + work, sums + embedding_gradients(trained)),
            "the first layer's backward pass": (around_layers(part) + first, gradients + embedding_gradients(trained)),
            "the update": (update_work(trained, part.on_cpu), gradients),
        }

    with_, without = activations(True), activations(False)
    chosen = with_ if train.recompute else without
    moment = max(chosen, key=lambda name: sum(chosen[name]))
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=max(size for size, _ in chosen.values()),
        cache=0,
        runtime=runtime,
        total=weights + optimizer + runtime + sum(chosen[moment]),
        moment=moment,
        activations_with_recompute=max(size for size, _ in with_.values()),
        activations_without_recompute=max(size for size, _ in without.values()),
    )


def answering_memory(preset: Preset, seats: int = 1, context: int | None = None, rounded: int | None = None) -> Memory:
    """What answering `seats` prompts at once needs on each device; `context`: the most tokens of one with its answer.

    `rounded`: bytes of a quantised checkpoint's weights, which the native library uses as they are; without it those
    that `ckpt quantize` would make of the preset's model where this has `weight_bits`.

    Several answers have a cache each, beside the one where prompts are read; on a CPU caches grow with the texts, and
    this is their largest size.
    """
    model, stored = preset.model, stored_parameters(preset)
    context = min(context or model.seq_length, model.seq_length)
    slots, places = min(context, model.cache_slots), seats + 1 if seats > 1 else 1
    part = part_of(preset, min(PART_TOKENS, context), batch=1)
    if rounded is None and model.weight_bits is not None:
        rounded = rounded_bytes(model, model.weight_bits)
    weights = sum(one.bytes for one in stored) if rounded is None else rounded
    reading = prefill_of_layer(part, slots if context > PART_TOKENS else 0) + 2 * part.vocabulary * 4
    work = max(reading, step_work(part, seats, slots))
    cache = 2 * part.layers * places * slots * part.inner * part.compute
    runtime = _CPU_ANSWERING + part.layers * _CPU_ANSWERING_GRAPH if part.on_cpu else _ASCEND_RESERVE
    if rounded is not None:
        reading = native_prefill(part, slots if context > PART_TOKENS else 0)
        work, runtime = max(reading, step_work(part, seats, 0)), _NATIVE_PROCESS
    return Memory(
        weights=weights,
        gradients=0,
        optimizer=0,
        activations=work,
        cache=cache,
        runtime=runtime,
        total=weights + cache + runtime + work,
        moment="reading the last part of a prompt" if work == reading else "a step of all answers",
        activations_with_recompute=None,
        activations_without_recompute=None,
    )


def kept_in_layer(part: Part) -> int:
    """What one layer keeps for its backward pass without recomputation.

    Ascend: the inputs of both norms in float32, 8 n C; the inputs of q, k, v and of fc0, fc1, 2 s N C; rotated queries
    and keys, values, and the attention's output in two layouts, 5 s N h; in the gated MLP z = fc0 h, the two factors of
    its GELU and their product, fc1 h and the input of fc2, 6 s N f; the softmax's statistics, 64 N H. Dropout keeps
    s n C each. CPU: measured, 4 N (23 C + 7 f), and 5 N H T in the plain attention.
    """
    tokens, s = part.batch_tokens, part.compute
    extra = s * tokens * part.adapter_rows + s * part.residual_rows * part.hidden * part.dropped
    if part.on_cpu:
        narrow = _CPU_NARROW * part.half + _CPU_WIDE * (part.inner + part.hidden) // 2
        scores = _CPU_SCORES * part.scores if part.backend == "plain" else 0
        return int(s * (tokens * narrow + scores)) + extra
    norms = 2 * 4 * part.residual_rows * part.hidden
    linears = s * tokens * (2 * part.hidden + 5 * part.inner + 6 * part.half)
    return norms + linears + _FUSED_STATISTICS * tokens * part.heads + extra


def kept_between_layers(part: Part) -> int:
    """What is kept of a recomputed layer: its input, s n C, cut by model_parallel when activations are sliced."""
    return part.compute * part.kept_rows * part.hidden


def backward_of_layer(part: Part) -> int:
    """What is at work in a layer's backward pass, beside what it kept: the larger of its two halves.

    MLP: gradients of the product, of its factors and of z, 4 s N f, and of the input, s N C. Norm: 8 n C in float32 and
    2 s n C. Plain attention holds one more set of scores, blocked 16 of a block's.
    """
    s, n = part.compute, part.residual_rows
    mlp = s * part.batch_tokens * (4 * part.half + part.hidden)
    norm = n * part.hidden * (8 + 2 * s)
    scores = (_CPU_BLOCKS if part.backend == "blocked" else 1) * part.scores * 4
    return scores if part.on_cpu else max(mlp, norm, scores)  # a CPU's rows are in what is kept, see there


def around_layers(part: Part) -> int:
    """Before and behind the layers: the last norm's input, 4 n C, its output, s N C, the attention's mask."""
    if part.on_cpu:
        return part.compute * part.batch_tokens * _CPU_AROUND * part.hidden
    mask = _MASK if part.backend in ("ascend", "acctransformer") else 4 * part.scores
    return part.hidden * (4 * part.residual_rows + part.compute * part.batch_tokens) + mask


def loss_work(part: Part) -> int:
    """Logits and their gradient: three float32 arrays of N v at once, forward and backward."""
    return 3 * 4 * part.batch_tokens * part.vocabulary


def casts(preset: Preset, stored: list[Stored], part: Part, recompute: bool) -> int:
    """Copies in the compute type of matrices stored in another, which the backward pass needs again."""
    other = [one for one in stored if one.type != preset.model.compute_type]
    size = sum(one.size for one in other if one.name.endswith((".weight", ".bias")))
    table = sum(one.size for one in other if one.name.endswith("embedding_table"))
    return part.compute * ((size // part.layers if recompute else size) + table)


def embedding_gradients(trained: list[Stored]) -> int:
    """The embedding is used twice: the output projection's gradient of it waits for the other one."""
    return sum(one.bytes for one in trained if one.name.endswith("embedding_table"))


def update_work(trained: list[Stored], on_cpu: bool) -> int:
    """What the update holds beside gradients and state.

    CPU: two copies of the largest gradient. Ascend: six float32 arrays of the largest and, to be on the safe side, one
    float32 copy of all gradients whose state is here: the order in which an Ascend casts and uses them is its own.
    """
    largest = max((one.own for one in trained), default=0)
    if on_cpu:
        return 2 * 4 * largest
    return 4 * sum(one.own for one in trained) + 6 * 4 * largest


def prefill_of_layer(part: Part, past: int = 0) -> int:
    """What reading a part of a prompt has at work: rows, and the larger of attention, s N 8 h, and MLP, s N 4 f.

    Rows: input, normed input and output, 3 s N C, and a norm in float32, 8 N C. With `past` slots of earlier parts and
    K = past + N, attention is the plain one: H N K scores in the compute type, in float32, as weights in both, and the
    mask; keys and values of all K, 4 s K h with the ring that is filled from them.
    """
    s, tokens = part.compute, part.batch_tokens
    rows = tokens * part.hidden * (3 * s + 8)
    keys = past + tokens
    if past:
        attention = part.heads * tokens * keys * (2 * s + 12) + 4 * s * keys * part.inner
    else:
        attention = 4 * (3 if part.backend == "plain" else 5) * part.scores
    return rows + max(s * tokens * 8 * part.inner + attention, s * tokens * 4 * part.half)


def native_prefill(part: Part, past: int) -> int:
    """What the native library has at work: rows in float32, 4 N (3 C + 2 f), keys and values of all tokens, logits."""
    rows = 4 * part.batch_tokens * (3 * part.hidden + 2 * part.half)
    return rows + 2 * 4 * (past + part.batch_tokens) * part.inner + 2 * 4 * part.vocabulary


def rounded_bytes(model: SparkConfig, bits: Literal[8, 4]) -> int:
    """Bytes of the weights that `ckpt quantize --bits` makes of a model."""
    wanted = Wanted.usual(bits)
    return sum(wanted.nbytes(TensorInfo(name, shape, FLOAT32)) for name, shape in expected_shapes(model).items())


def step_work(part: Part, seats: int, slots: int) -> int:
    """What a step of `seats` answers has at work: rows, scores over the cache, logits in float32 and their copy."""
    scores = seats * part.heads * slots * (2 * part.compute + 12)
    rows = seats * (part.hidden * (3 * part.compute + 8) + part.compute * (8 * part.inner + 4 * part.half))
    return rows + scores + 2 * 4 * seats * part.vocabulary


def cpu_process(layers: int) -> int:
    """Python, MindSpore and its compiler's memory for the training graph of so many layers; measured."""
    return _CPU_PROCESS + _CPU_GRAPH * layers + _CPU_GRAPH_SQUARE * (layers - 1) * max(0, layers - 2)


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
    shapes: dict[str, tuple[tuple[int, ...], str, bool]] = {
        name: (shape, stored_type(name, preset), not lora) for name, shape in expected_shapes(preset.model).items()
    }
    if lora:
        shapes |= {name: (shape, "float32", True) for name, shape in adapter_shapes(preset.model, preset.lora).items()}
    return [_stored(name, *facts, preset=preset, mesh=mesh) for name, facts in shapes.items()]


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
