"""A matrix of weights as the native library reads it: of floats, or whole numbers with scales (weights.h)."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# NumPy's type -> the library's number
TYPES = {"float32": 0, "bfloat16": 1, "uint16": 1, "int8": 2, "uint8": 3, "float16": 4}


@dataclass(frozen=True)
class Matrix:
    """Weights (outputs, inputs).

    `array` is float32; bfloat16 (or its bits as uint16); float16, but in training; int8; or uint8 (outputs,
    inputs / 2), two weights a byte. `scales` (outputs, inputs / group), bfloat16 or its bits, one for `group` inputs,
    belong to the last two.
    """

    array: np.ndarray
    scales: np.ndarray | None = None
    group: int = 0

    @property
    def type(self) -> int:
        """The library's number of the type. Raises ValueError for a type that it does not read."""
        found = TYPES.get(self.array.dtype.name)
        if found is None or self.array.ndim != 2:
            raise ValueError(f"a matrix of {self.array.dtype} {self.array.shape} cannot be read")
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        outputs, width = self.array.shape
        return outputs, width * 2 if self.array.dtype == np.uint8 else width
