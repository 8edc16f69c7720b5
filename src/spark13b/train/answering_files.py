"""What a plan of answering must know of the files. Plain Python: MindSpore is not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spark13b.ckpt.adapters import OpenParts, open_adapters, parts_of
from spark13b.ckpt.mapping import answering_bytes
from spark13b.ckpt.quantized import QuantizedCheckpoint, need_quantized, refuse_folding
from spark13b.config.model import SparkConfig
from spark13b.config.sections import LoraConfig
from spark13b.model.names import expected_shapes
from spark13b.model.native_choice import answering_problem


@dataclass(frozen=True)
class AnsweringFiles:
    """`weights`: bytes as the native library holds them, None where no file tells; `rounded`: they are quantised.

    `lora`: of adapters that are computed beside them.
    """

    weights: int | None = None
    rounded: bool = False
    lora: LoraConfig | None = None


UNKNOWN = AnsweringFiles()  # weights as the preset has them, and no adapters


def answering_files(load: Path | None, adapter: Path | None, config: SparkConfig, fold: bool = False) -> AnsweringFiles:
    """What `--load` and `--adapter` name, either of which may be missing; `fold`: adapters are added to the weights.

    Raises InputError when a file is not there, or does not go with the other one or with a model of `config`.
    """
    if load is not None:
        with parts_of(load, adapter).open(config) as parts:
            return files_of(parts, config, fold)
    if adapter is None:
        return UNKNOWN
    with open_adapters(adapter) as adapters:
        adapters.check_base(config)
        return AnsweringFiles(lora=None if fold else adapters.lora)


def files_of(parts: OpenParts, config: SparkConfig, fold: bool = False) -> AnsweringFiles:
    """The same of files that are open."""
    base, weights = parts.base, None
    need_quantized(base, config.weight_bits)
    if fold and parts.adapters is not None:
        refuse_folding(base)
    if answering_problem(config, "cpu", 1) is None and base.shapes().items() >= expected_shapes(config).items():
        weights = answering_bytes(base, config)
    return AnsweringFiles(weights, isinstance(base, QuantizedCheckpoint), None if fold else parts.lora)
