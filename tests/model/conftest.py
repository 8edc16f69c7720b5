"""What tests of the model share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def operator_by_operator() -> Iterator[None]:
    """MindSpore runs Python as it stands: calls can be counted, and no graph is compiled, which takes seconds."""
    import mindspore

    from spark13b.model.device import device

    device()
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    yield
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
