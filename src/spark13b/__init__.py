"""spark13b: one command line for the whole life of the iFlytekSpark-13B language model."""

__version__ = "0.1.0"
