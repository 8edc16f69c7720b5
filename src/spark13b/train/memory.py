"""How much memory a device needs to train, by arithmetic alone: no tensor is made, no device asked. See docs/memory.md.

All formulas are in bytes a device, with the sizes of its own part: N = B T tokens of one batch, of which it holds n
rows of the residual stream (N / model_parallel under sequence parallelism, else N); C hidden_size; h = C, f = F / 2 and
v = V, each divided by model_parallel; H its heads; L layers; s bytes of a number of the compute type.
"""

from __future__ import annotations

from dataclasses import dataclass

from spark13b.config.preset import Preset
from spark13b.train.native_memory import native_process, native_step, native_trainer
from spark13b.train.parts import Part, Stored, part_of, stored_parameters
from spark13b.train.rounded import RoundedBase

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
ASCEND_RESERVE = 2**30  # workspace of kernels and what no formula here knows; not measured


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


def training_memory(preset: Preset, tokens: int, base: RoundedBase | None = None) -> Memory:
    """What training on rows of `tokens` tokens needs on each device; on a CPU of what computes it here.

    `base`: a quantised one, which is mapped into memory.
    """
    train, stored, part = preset.train, stored_parameters(preset), part_of(preset, tokens)
    native, _ = native_trainer(preset, base)
    trained = [one for one in stored if one.trained]
    accumulated = train.accumulation_steps > 1
    weights = sum(one.bytes for one in stored) if base is None else base.nbytes + sum(one.bytes for one in trained)
    # one float32 sum a parameter when gradients are accumulated, beside those of the batch at work
    gradients = sum(one.bytes for one in trained) + (4 * sum(one.size for one in trained) if accumulated else 0)
    masters = preset.optimizer.master_weights
    optimizer = sum(one.own * (12 if masters and one.type != "float32" else 8) for one in trained)
    if native is not None:
        runtime = native_process(preset, len(trained))
    else:
        runtime = cpu_process(part.layers) if part.on_cpu else ASCEND_RESERVE

    def activations(recompute: bool) -> dict[str, tuple[int, int]]:
        """Moment -> activations and gradients then."""
        if native is not None:  # its memory stays, and it updates in place; what it does not do is MindSpore's
            step, shared = native_step(native, preset, tokens, recompute, base), preset.parallel.data_parallel > 1
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


def cpu_process(layers: int) -> int:
    """Python, MindSpore and its compiler's memory for the training graph of so many layers; measured."""
    return _CPU_PROCESS + _CPU_GRAPH * layers + _CPU_GRAPH_SQUARE * (layers - 1) * max(0, layers - 2)
