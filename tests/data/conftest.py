"""Tests may import protobuf before MindSpore, whose generated code works with the pure Python implementation only."""

import os

os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
