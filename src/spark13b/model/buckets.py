"""Shape buckets: a graph is compiled for one shape, so lengths are rounded up to few."""

from __future__ import annotations

_SMALLEST = 16


def bucket(tokens: int, limit: int) -> int:
    """The length to compile for: 16, 32, 64, ... tokens, at most `limit`. Raises ValueError above it."""
    if tokens > limit:
        raise ValueError(f"{tokens} tokens are more than the {limit} that there is room for")
    size = _SMALLEST
    while size < tokens:
        size *= 2
    return min(size, limit)
