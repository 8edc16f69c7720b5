"""How a plan looks on the terminal: what `train`, `lora` and `infer` print with --dry-run."""

from __future__ import annotations

from collections.abc import Iterator

from spark13b.cli import console
from spark13b.train.fitting import gib
from spark13b.train.plan import Plan


def show_plan(plan: Plan, as_json: bool) -> None:
    """Print a plan to stdout."""
    if as_json:
        console.print_json(plan.as_dict())
        return
    lines = [*_run(plan), ("", ""), *_memory(plan), ("", ""), *_collectives(plan)]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:{width}}  {value}".rstrip())


def _run(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "task", plan.task
    yield "parameters", f"{plan.parameters:,}"
    if plan.trained_parameters not in (0, plan.parameters):
        yield "trained", f"{plan.trained_parameters:,}"
    split = f" (data_parallel {plan.data_parallel} x model_parallel {plan.model_parallel})" if plan.devices > 1 else ""
    machines = -(-plan.devices // plan.devices_per_node)
    several = f", {plan.devices_per_node} on each of {machines} machines" if machines > 1 else ""
    yield "devices", f"{plan.devices}{split}{several}"
    yield "computes", plan.computes
    if plan.task == "infer":
        yield "answers at once", f"{plan.seats}"
        yield "prompt and answer", f"up to {plan.tokens:,} tokens"
        return
    yield "rows", f"{'unknown' if plan.rows is None else format(plan.rows, ',')}, of {plan.tokens:,} tokens"
    yield "a step", f"{plan.batch_size:,} rows, {plan.tokens_per_step:,} tokens"
    yield "steps", _steps(plan)


def _steps(plan: Plan) -> str:
    if plan.steps is None:
        return "depends on the rows; add --data"
    epochs = f" ({plan.steps * plan.batch_size / plan.rows:.2f} epochs)" if plan.rows else ""
    return f"{plan.steps:,}{epochs}"


def _memory(plan: Plan) -> Iterator[tuple[str, str]]:
    memory = plan.memory
    yield "memory a device", ""
    yield "  weights", gib(memory.weights)
    if plan.task == "infer":
        yield "  cache", gib(memory.cache)
        yield "  activations", gib(memory.activations)
    else:
        yield "  gradients", gib(memory.gradients)
        yield "  optimizer", gib(memory.optimizer)
        assert memory.activations_with_recompute is not None
        assert memory.activations_without_recompute is not None
        chosen = ", as the preset says"
        yield "  activations, recomputed", gib(memory.activations_with_recompute) + (chosen if plan.recompute else "")
        yield "  activations, kept", gib(memory.activations_without_recompute) + ("" if plan.recompute else chosen)
    yield "  process or reserve", gib(memory.runtime)
    yield "  at most at once", f"{gib(memory.total)}, in {memory.moment}"
    if plan.memory_limit is not None:
        yield "  limit", gib(plan.memory_limit)


def _collectives(plan: Plan) -> Iterator[tuple[str, str]]:
    moment = "to read a prompt" if plan.task == "infer" else "a step"
    if not plan.collectives:
        yield f"collectives {moment}", "none"
        return
    total = sum(one.bytes for one in plan.collectives)
    yield f"collectives {moment}", f"{sum(one.count for one in plan.collectives):,}, {gib(total)}"
    for one in plan.collectives:
        yield f"  {one.what}", f"{one.count:,} x {one.kind} over {one.group}, {gib(one.bytes)}"
