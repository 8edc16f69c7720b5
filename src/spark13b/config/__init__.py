"""Typed configuration: the model's shape and the presets."""

from spark13b.config.model import SparkConfig

__all__ = ["SparkConfig"]
