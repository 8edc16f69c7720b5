"""Typed configuration: the model's shape and the presets.

Names load on first use, so that `spark13b preset list` needs neither pydantic nor YAML.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark13b.config.library import preset_descriptions, preset_folder, preset_names
    from spark13b.config.load import load_preset
    from spark13b.config.model import SparkConfig
    from spark13b.config.preset import Preset, differences
    from spark13b.config.rules import notes
    from spark13b.config.sections import (
        GenerationConfig,
        LoraConfig,
        MachineConfig,
        OptimizerConfig,
        ParallelConfig,
        ScheduleConfig,
        TrainConfig,
    )

__all__ = [
    "GenerationConfig",
    "LoraConfig",
    "MachineConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "Preset",
    "ScheduleConfig",
    "SparkConfig",
    "TrainConfig",
    "differences",
    "load_preset",
    "notes",
    "preset_descriptions",
    "preset_folder",
    "preset_names",
]

_MODULES = {
    "library": ("preset_descriptions", "preset_folder", "preset_names"),
    "load": ("load_preset",),
    "model": ("SparkConfig",),
    "preset": ("Preset", "differences"),
    "rules": ("notes",),
    "sections": tuple(name for name in __all__ if name.endswith("Config") and name != "SparkConfig"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next look-up is direct
    return value
