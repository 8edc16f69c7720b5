"""Shape buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark13b.model.buckets import bucket


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_bucket_has_room_for_the_tokens_stays_within_the_limit_and_wastes_less_than_half(
    tokens: int, limit: int
) -> None:
    if tokens > limit:
        with pytest.raises(ValueError, match=f"{tokens} tokens are more than the {limit} that there is room for"):
            bucket(tokens, limit)
        return
    size = bucket(tokens, limit)
    assert tokens <= size <= limit
    assert size < max(17, 2 * tokens)
    assert size == limit or size & (size - 1) == 0


def test_all_lengths_of_a_context_fall_into_few_buckets() -> None:
    sizes = {bucket(tokens, 32768) for tokens in range(1, 32769)}
    assert sizes == {16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768}
    assert {bucket(tokens, 100) for tokens in range(1, 101)} == {16, 32, 64, 100}
