"""`Preset`: everything a command needs to know before it starts, complete and checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from spark13b.config import documents
from spark13b.config.checked import Checked, Problem
from spark13b.config.layers import leaves
from spark13b.config.model import SparkConfig
from spark13b.config.rules import broken_rules
from spark13b.config.sections import (
    GenerationConfig,
    LoraConfig,
    MachineConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainConfig,
)


class Preset(Checked):
    """A complete preset. `spark13b.config.load_preset` makes one from a name or a file."""

    description: str = Field(min_length=1, description="one line for 'spark13b preset list'")
    task: Literal["pretrain", "sft", "lora", "infer"]
    model: SparkConfig
    machine: MachineConfig
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)

    def _problems(self) -> Iterator[Problem]:
        return broken_rules(self)

    def to_yaml(self) -> str:
        """Every value as YAML, built-in defaults included; loads again to an equal Preset."""
        return documents.dump(self.model_dump())


def known_keys(model: type[BaseModel] = Preset, prefix: str = "") -> dict[str, FieldInfo]:
    """All dotted keys of a preset, sections and leaves, in the order of the file."""
    keys: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        keys[prefix + name] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys.update(known_keys(field.annotation, f"{prefix}{name}."))
    return keys


def differences(a: Preset, b: Preset) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ, with both values; the descriptions are left out."""
    ours, theirs = leaves(a.model_dump(exclude={"description"})), leaves(b.model_dump(exclude={"description"}))
    return {key: (value, theirs[key]) for key, value in ours.items() if value != theirs[key]}
