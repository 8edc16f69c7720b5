"""Where arrays lie, as C++ is told, and what is checked before: it reads memory as it is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def addresses_of(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Where arrays lie: (N,) of addresses. The arrays must be kept."""
    return np.array([array.ctypes.data for array in arrays], np.uintp)


def check_array(array: np.ndarray, shape: tuple[int, ...], dtype: npt.DTypeLike, name: str) -> None:
    """Raise ValueError, with the array's `name`, where it is not contiguous, of that shape and that type."""
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        found = f"{array.dtype} {array.shape}" + ("" if array.flags.c_contiguous else ", not contiguous")
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, and contiguous; got {found}")
