"""Loss scaling: gradients of float16 are kept in range by a factor on the loss (shared/SPEC.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

from spark13b.config.sections import TrainConfig

_SMALLEST = 1.0


@dataclass
class LossScale:
    """The factor of the next step. A dynamic one halves after a step with inf or nan, and grows after good ones."""

    value: float
    dynamic: bool
    factor: float
    window: int
    good_steps: int = 0

    @classmethod
    def of(cls, config: TrainConfig) -> LossScale:
        """The scale that a preset begins with."""
        value = 1.0 if config.loss_scale == "none" else config.loss_scale_value
        return cls(value, config.loss_scale == "dynamic", config.loss_scale_factor, config.loss_scale_window)

    @property
    def explains_overflow(self) -> bool:
        """Whether gradients that are not finite may be the scale's doing: a smaller one is still to be tried."""
        return self.dynamic and self.value > _SMALLEST

    def update(self, finite: bool) -> None:
        """Take note of a step whose gradients were finite, or not."""
        if not self.dynamic:
            return
        if not finite:
            self.value = max(self.value / self.factor, _SMALLEST)
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps >= self.window:
            self.value *= self.factor
            self.good_steps = 0
