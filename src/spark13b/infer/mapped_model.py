"""A model that answers from where its file is mapped into memory."""

from __future__ import annotations

from spark13b.ckpt.mapping import mapped_parameters
from spark13b.ckpt.tensors import Checkpoint
from spark13b.config.model import SparkConfig
from spark13b.infer.native_model import NativeAdapters, NativeModel
from spark13b.native.library import Library


def map_native(
    base: Checkpoint, config: SparkConfig, library: Library, adapters: NativeAdapters | None = None
) -> NativeModel:
    """The model of a checkpoint whose names fit. Its weights stay when `base` is closed."""
    return NativeModel(config, mapped_parameters(base, config), library, adapters)
