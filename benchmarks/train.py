"""Tokens a second of spark13b's training step beside transformers on torch, and how far both are from the floor.

    python benchmarks/train.py [--sizes 10m 50m 120m] [--rounds 7] [--bfloat16] [--lora] [--compile] [--quick]

One step is forward, backward, clipping of the global gradient norm to 1 and AdamW, in float32, on 2 threads, with the
loss read after it. The other side is transformers' Llama with tied embeddings, the same widths, layers, vocabulary and
batch, biases in all linear layers and the same GELU (so it differs from ours in its norm alone), scaled-dot-product
attention and torch's fused AdamW. Each side is a process that lives through all rounds and waits while the other works;
a round is one step, or as many as take two seconds, of each side, by turns.

With --bfloat16 both compute products in bfloat16 over float32 weights: ours by model.compute_type, torch by autocast;
the floor is then that of bfloat16 products, at torch's rate.

With --lora adapters of rank 8 beside all seven linear layers are trained, and the weights stay. Torch's side has them
as peft makes them, base(x) + B(A(x)) scale, in 10 lines of our own. A second row is our step by MindSpore's operators
and the native attention, as where the library cannot be used; they have no bfloat16.

Torch's threads wait for each other in loops, so other programs slow it more than us. A round waits for a quiet machine,
at most 20 s; rounds are repeated, up to three times as many, until each side has enough that had 95 % of the machine to
themselves; and each side's quietest count. What others had in those is told on stderr.

The floor is the step's matrix products at the highest rate that either side reached, in the same rounds, with one large
product. Their FLOPs are, for N = B T tokens,

    3 x 2 N (L (4 C^2 + 3 C W) + C V + L C (T + 1))

forward and twice that backward: the four attention projections, the three of the MLP with W = F / 2, the logits, and
the causal half of attention's scores and weighted values. With --lora the products with weights count twice, not three
times; those of the adapters are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sides import QUICK, QUIET, SIZES, OtherPrograms, Size, answering, llama, spark, wait_for_quiet, worker

ROUND_SECONDS = 2.0
WARM_STEPS = 6  # our first steps are slower: 2.7 s, from the fifth 2.2 s, of the smallest model
BFLOAT16 = os.environ.get("SPARK13B_BENCHMARK_BFLOAT16") == "1"  # set for both sides' processes by --bfloat16
LORA = os.environ.get("SPARK13B_BENCHMARK_LORA") == "1"  # likewise, by --lora
RANK, SCALE = 8, 2.0  # of adapters
PRODUCT = 2048  # rows, columns and depth of the product that the rate is measured with


def spark_step(size: Size) -> tuple[Callable[[int], float], Callable[[], None], int]:
    """Our step (seed of the batch -> loss), one large product, and the number of parameters."""
    from mindspore import Tensor, nn, ops

    from spark13b.config.sections import LoraConfig, OptimizerConfig
    from spark13b.model.mesh import ALONE
    from spark13b.train.optimizer import AdamW, corrected
    from spark13b.train.placement import placement
    from spark13b.train.step import Step

    lora = LoraConfig(rank=RANK, alpha=SCALE * RANK) if LORA else None
    model = spark(size, size.tokens, "bfloat16" if BFLOAT16 else "float32", lora)
    trained, settings = model.trainable(), OptimizerConfig()
    parameters = list(trained.values())
    placements = [placement(name, tuple(one.shape), ALONE, False) for name, one in trained.items()]
    train_step = Step(model, AdamW(parameters, settings, placements), placements, clip_norm=1.0)
    mask = np.ones((size.batch, size.tokens), np.float32)
    updates = 0

    def step(seed: int) -> float:
        nonlocal updates
        updates += 1
        rate, decay = corrected(settings, 1e-4, updates)
        return train_step(size.batch_of(seed), mask, rate, decay, 1.0, updates - 1)[0]

    class Product(nn.Cell):
        def construct(self, a: Any, b: Any) -> Any:
            return ops.MatMul()(a, b)

    product, a = Product(), Tensor(np.ones((PRODUCT, PRODUCT), np.float32))
    return step, lambda: product(a, a).asnumpy()[0, 0], sum(parameter.size for parameter in parameters)


def mindspore_step(size: Size) -> tuple[Callable[[int], float], Callable[[], None], int]:
    """Our step by MindSpore's operators, but for its attention."""
    from spark13b.model import native_choice
    from spark13b.native.library import Found

    native_choice.find_library = lambda: Found(None, "it is not asked")
    return spark_step(size)


def torch_step(size: Size, compiled: bool = False) -> tuple[Callable[[int], float], Callable[[], None], int]:
    """The same of transformers on torch."""
    import torch

    model = llama(size, size.tokens).train()
    model.config.use_cache = False
    if LORA:
        add_adapters(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    forward = torch.compile(model) if compiled else model

    def step(seed: int) -> float:
        ids = torch.from_numpy(size.batch_of(seed)[:, :-1].astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    a = torch.ones((PRODUCT, PRODUCT), dtype=torch.bfloat16 if BFLOAT16 else torch.float32)
    return step, lambda: torch.mm(a, a), sum(parameter.numel() for parameter in parameters)


def add_adapters(model: Any) -> None:
    """Freeze a torch model, and put adapters beside all linear layers of its blocks."""
    import torch

    class Adapted(torch.nn.Module):
        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base = base
            self.a = torch.nn.Linear(base.in_features, RANK, bias=False)
            self.b = torch.nn.Linear(RANK, base.out_features, bias=False)

        def forward(self, x: Any) -> Any:
            return self.base(x) + self.b(self.a(x)) * SCALE

    model.requires_grad_(False)
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(part, name, Adapted(linear))


SIDES = {
    "spark13b": spark_step,
    "MindSpore": mindspore_step,
    "torch": torch_step,
    "torch.compile": lambda size: torch_step(size, compiled=True),
}


def work(side: str, size: Size) -> None:
    """One side's process: answers each line of standard input, a number of steps, with seconds a step and FLOP/s."""
    with answering() as tell:
        step, product, parameters = SIDES[side](size)
        losses = [step(0)]
        product()
        tell({"parameters": parameters, "loss": losses[0]})
        seed = 0
        for line in sys.stdin:
            wait_for_quiet()
            others = OtherPrograms()
            start = time.perf_counter()
            for _ in range(int(line)):
                seed += 1
                losses.append(step(seed))
            answer = {
                "seconds": (time.perf_counter() - start) / int(line),
                "others": others.share(),
                "loss": losses[-1],
            }
            rates = []
            for _ in range(3):
                start = time.perf_counter()
                product()
                rates.append(2 * PRODUCT**3 / (time.perf_counter() - start))
            tell({**answer, "rate": max(rates)})


def compare(size: Size, others: list[str], rounds: int, lora: bool) -> list[str]:
    """The table's rows of one size, one for each of the other side's ways."""
    rows = []
    for other in others:
        with (
            worker(__file__, "spark13b", size) as (ours, our_first),
            worker(__file__, other, size) as (theirs, their_first),
        ):
            warm = [side(WARM_STEPS)["seconds"] for side in (ours, theirs)]  # not counted
            steps = [max(1, round(ROUND_SECONDS / seconds)) for seconds in warm]
            answers: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
            while len(answers[0]) < 3 * rounds and min(map(quiet_rounds, answers)) < rounds:
                for run, count, side in zip((ours, theirs), steps, answers, strict=True):
                    side.append(run(count))
                told = [f"{side[-1]['seconds']:.3f} s (others had {side[-1]['others']:.0%})" for side in answers]
                print(f"{size.name} round {len(answers[0])}: spark13b {told[0]}, {other} {told[1]}", file=sys.stderr)
        chosen = [sorted(side, key=lambda answer: answer["others"])[:rounds] for side in answers]
        our_seconds, their_seconds = (statistics.median(answer["seconds"] for answer in side) for side in chosen)
        others_had = max(side[-1]["others"] for side in chosen)
        rates = [statistics.median(answer["rate"] for answer in side) for side in chosen]
        rate = max(rates)
        flops = size.flops - (size.flops_of_weights / 3 if lora else 0)
        tokens, floor = size.batch * size.tokens, flops / rate
        print(
            f"{size.name}: {our_first['parameters'] / 1e6:.1f}M and {their_first['parameters'] / 1e6:.1f}M parameters, "
            f"{flops / 1e9:.0f} GFLOP a step; a product ran at {rates[0] / 1e9:.0f} and {rates[1] / 1e9:.0f} "
            f"GFLOP/s; other programs had up to {others_had:.0%} of the machine",
            file=sys.stderr,
        )
        rows.append(
            f"| {size.name}, {size.batch} x {size.tokens} | {other} | {tokens / our_seconds:,.0f} "
            f"| {tokens / their_seconds:,.0f} | {their_seconds / our_seconds:.2f} | {tokens / floor:,.0f} "
            f"({rate / 1e9:.0f}) | {floor / our_seconds:.2f} | {floor / their_seconds:.2f} |"
        )
    return rows


def quiet_rounds(answers: list[dict[str, float]]) -> int:
    """How many rounds other programs left alone."""
    return sum(answer["others"] <= QUIET for answer in answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bfloat16", action="store_true", help="products in bfloat16 on both sides")
    parser.add_argument("--lora", action="store_true", help="adapters are trained, the weights stay")
    parser.add_argument("--compile", action="store_true", help="a second row with torch.compile")
    parser.add_argument("--quick", action="store_true", help="a model of 0.5M parameters, to see that the script runs")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work[0], Size(**json.loads(arguments.work[1])))
        return
    if arguments.bfloat16:
        os.environ["SPARK13B_BENCHMARK_BFLOAT16"] = "1"
    if arguments.lora:
        os.environ["SPARK13B_BENCHMARK_LORA"] = "1"
    sizes = [QUICK] if arguments.quick else [SIZES[name] for name in arguments.sizes]
    others = ["torch", "torch.compile"] if arguments.compile else ["torch"]
    if arguments.lora and not arguments.bfloat16:
        others.append("MindSpore")
    rows = [row for size in sizes for row in compare(size, others, arguments.rounds, arguments.lora)]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    print(
        "| size, batch | beside | spark13b, tokens/s | theirs, tokens/s | ratio | floor, tokens/s (GFLOP/s) "
        "| spark13b, of the floor | theirs, of the floor |"
    )
    print("|---" * 8 + "|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
