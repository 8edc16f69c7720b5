"""Checkpoints: read and write MindSpore's, safetensors' and torch's files, one tensor at a time.

`open_checkpoint(path)` is a mapping name -> array, read when looked up; `write_checkpoint(path, items)` streams the
other way. bfloat16 arrays are of `ml_dtypes.bfloat16` (`BFLOAT16`); `to_float32` widens them. Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark13b.ckpt.dtypes import BFLOAT16, to_float32
    from spark13b.ckpt.opening import open_checkpoint
    from spark13b.ckpt.tensors import Checkpoint, Derived, TensorInfo
    from spark13b.ckpt.writing import Written, write_checkpoint
    from spark13b.model.names import expected_shapes, kind_of, match_names

__all__ = [
    "BFLOAT16",
    "Checkpoint",
    "Derived",
    "TensorInfo",
    "Written",
    "expected_shapes",
    "kind_of",
    "match_names",
    "open_checkpoint",
    "to_float32",
    "write_checkpoint",
]

_MODULES = {
    "dtypes": ("BFLOAT16", "to_float32"),
    "spark13b.model.names": ("expected_shapes", "kind_of", "match_names"),
    "opening": ("open_checkpoint",),
    "tensors": ("Checkpoint", "Derived", "TensorInfo"),
    "writing": ("Written", "write_checkpoint"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(
        importlib.import_module(_HOMES[name] if "." in _HOMES[name] else f"{__name__}.{_HOMES[name]}"), name
    )
    globals()[name] = value  # the next look-up is direct
    return value
