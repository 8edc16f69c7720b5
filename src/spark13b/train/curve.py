"""The loss curve as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spark13b.files import replacing


def draw(steps: Sequence[int], losses: Sequence[float], target: Path, title: str = "training loss") -> None:
    """Draw losses over steps, with a running mean, into `target` (a .png); replaces it."""
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
        axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.25)
    with replacing(target, force=True) as draft:
        figure.savefig(draft, format="png")
