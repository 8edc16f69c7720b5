"""The learning rate of every step, in plain Python (shared/SPEC.md, section 4)."""

from __future__ import annotations

import math

from spark13b.config.sections import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, step: int, run_steps: int) -> float:
    """The rate of step `step`, counted from 0, of a run of `run_steps` steps.

    Warm-up is linear from 0: step 0 has 0 when there are warm-up steps. Then `kind` leads from `lr` to `lr_end`, which
    is reached at `total_steps` (or at the end of the run) and kept from there on.
    """
    if step < schedule.warmup_steps:
        return schedule.lr * step / schedule.warmup_steps
    total = schedule.total_steps or run_steps
    progress = min(1.0, (step - schedule.warmup_steps) / max(1, total - schedule.warmup_steps))
    if schedule.kind == "constant":
        return schedule.lr
    if schedule.kind == "linear":
        return schedule.lr + (schedule.lr_end - schedule.lr) * progress
    return schedule.lr_end + 0.5 * (schedule.lr - schedule.lr_end) * (1.0 + math.cos(math.pi * progress))
