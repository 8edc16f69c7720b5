"""Attention with all scores at once: the shortest way for short texts."""

from __future__ import annotations

from spark13b.model.attention.blocked import BlockedAttention


class PlainAttention(BlockedAttention):
    """One block holds all queries."""

    def queries(self, heads: int, tokens: int) -> int:
        return tokens
