"""A quantised base beside which adapters are trained, as a plan counts it: mapped, and as large as in its file."""

from __future__ import annotations

from dataclasses import dataclass

from spark13b.ckpt.dtypes import BFLOAT16, FLOAT32
from spark13b.ckpt.mapping import BESIDE_ADAPTERS, held_as
from spark13b.ckpt.quantized import Choice, QuantizedCheckpoint
from spark13b.ckpt.quantizing import Wanted
from spark13b.ckpt.tensors import TensorInfo
from spark13b.config.model import SparkConfig
from spark13b.model.names import expected_shapes
from spark13b.native.matrix import TYPES


@dataclass(frozen=True)
class RoundedBase:
    """`nbytes` of all tensors; `types`: the library's numbers for those of the matrices, in a checkpoint's order."""

    nbytes: int
    types: tuple[int, ...]

    @classmethod
    def of(cls, base: QuantizedCheckpoint, config: SparkConfig) -> RoundedBase:
        """Of a file whose names fit."""
        infos = base.stored.infos
        dtypes = [
            infos[name].dtype if name in base.choices else held_as(infos[name], BESIDE_ADAPTERS)
            for name, shape in expected_shapes(config).items()
            if len(shape) == 2
        ]
        return cls(base.stored.nbytes, tuple(TYPES[dtype.name] for dtype in dtypes))

    @classmethod
    def usual(cls, config: SparkConfig) -> RoundedBase:
        """Of what 'ckpt quantize' makes of the model of a preset, which says the bits."""
        assert config.weight_bits is not None
        wanted = Wanted.usual(config.weight_bits)
        infos = [TensorInfo(name, shape, FLOAT32) for name, shape in expected_shapes(config).items()]
        choices = [wanted.choice(info) for info in infos if len(info.shape) == 2]
        return cls(sum(map(wanted.nbytes, infos)), tuple(map(_type_of, choices)))


def _type_of(choice: Choice | None) -> int:
    """The number of a matrix's type; what is not quantised is bfloat16."""
    return TYPES[BFLOAT16.name] if choice is None else TYPES["int8" if choice.bits == 8 else "uint8"]
