"""AdamWeightDecayX and clipping of shared/SPEC.md, sections 4 and 14, in NumPy float64, one formula a line."""

from __future__ import annotations

import numpy as np

from spark13b.config.sections import OptimizerConfig

Weights = dict[str, np.ndarray]


class NumpyAdam:
    """Updates `weights` in place; no weight decay on norms and biases."""

    def __init__(self, weights: Weights, config: OptimizerConfig) -> None:
        self.weights, self.config, self.updates = weights, config, 0
        self.m = {name: np.zeros(array.shape) for name, array in weights.items()}
        self.v = {name: np.zeros(array.shape) for name, array in weights.items()}

    def update(self, gradients: Weights, lr: float) -> None:
        b1, b2, t = self.config.beta1, self.config.beta2, self.updates + 1
        for name, g in gradients.items():
            spared = "norm" in name or name.endswith("bias")
            p = self.weights[name] * (1 - lr * (0.0 if spared else self.config.weight_decay))
            self.m[name] = b1 * self.m[name] + (1 - b1) * g
            self.v[name] = b2 * self.v[name] + (1 - b2) * g**2
            step = lr * np.sqrt(1 - b2**t) / (1 - b1**t)
            self.weights[name] = p - step * self.m[name] / (np.sqrt(self.v[name]) + self.config.epsilon)
        self.updates = t


def global_norm(gradients: Weights) -> float:
    return float(np.sqrt(sum((gradient**2).sum() for gradient in gradients.values())))


def clipped(gradients: Weights, limit: float) -> Weights:
    """g * min(1, limit / (max(norm, limit) + 1e-6))"""
    factor = min(1.0, limit / (max(global_norm(gradients), limit) + 1e-6))
    return {name: gradient * factor for name, gradient in gradients.items()}
