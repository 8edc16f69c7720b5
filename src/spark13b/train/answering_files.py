"""What a plan of answering must know of the files. Plain Python: MindSpore is not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spark13b.ckpt import open_checkpoint
from spark13b.ckpt.adapters import open_adapters, parts_of
from spark13b.ckpt.quantized import QuantizedCheckpoint, need_quantized, refuse_folding
from spark13b.config.model import SparkConfig
from spark13b.config.sections import LoraConfig


@dataclass(frozen=True)
class AnsweringFiles:
    """`rounded`: bytes of the weights where they are quantised; `lora`: of adapters that are computed beside them."""

    rounded: int | None = None
    lora: LoraConfig | None = None


UNKNOWN = AnsweringFiles()  # weights as the preset has them, and no adapters


def answering_files(load: Path | None, adapter: Path | None, config: SparkConfig, fold: bool = False) -> AnsweringFiles:
    """What `--load` and `--adapter` name, either of which may be missing; `fold`: adapters are added to the weights.

    Raises InputError when a file is not there, or does not go with the other one or with a model of `config`.
    """
    rounded = None
    if load is not None:
        parts = parts_of(load, adapter)
        adapter = parts.adapters
        with open_checkpoint(parts.base) as base:
            need_quantized(base, config.weight_bits)
            if fold and adapter is not None:
                refuse_folding(base)
            rounded = base.stored.nbytes if isinstance(base, QuantizedCheckpoint) else None
    if adapter is None:
        return AnsweringFiles(rounded)
    with open_adapters(adapter) as adapters:
        adapters.check_base(config)
        return AnsweringFiles(rounded, None if fold else adapters.lora)
