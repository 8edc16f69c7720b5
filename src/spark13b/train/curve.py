"""The loss curve as a PNG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spark13b.files import replacing
from spark13b.run_folder import RunFolder

Points = tuple[Sequence[int], Sequence[float]]


def draw(
    steps: Sequence[int],
    losses: Sequence[float],
    target: Path,
    title: str = "training loss",
    evaluations: Points = ((), ()),
) -> None:
    """Draw losses over steps, with a running mean and the losses of evaluations, into `target` (a .png); replaces it.

    `evaluations`: steps and losses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no screen is needed
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="each step")
    width = max(1, len(losses) // 25)
    if width > 1:
        mean = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], mean, color="#1f4e79", linewidth=1.8, label=f"mean of {width}")
    if evaluations[0]:
        axes.plot(*evaluations, color="#c0504d", linewidth=1.2, marker="o", markersize=4, label="evaluation")
    if len(axes.lines) > 1:
        axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.25)
    with replacing(target, force=True) as draft:
        figure.savefig(draft, format="png")


def draw_curve(run: RunFolder) -> None:
    """Draw what the run's metrics hold into its loss.png."""
    records = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    steps, evaluations = ([record for record in records if key in record] for key in ("loss", "eval_loss"))
    draw(
        [record["step"] for record in steps],
        [record["loss"] for record in steps],
        run.curve,
        evaluations=([record["step"] for record in evaluations], [record["eval_loss"] for record in evaluations]),
    )
