"""The native library: prompts, decode steps and training in C++, without an operator to dispatch (docs/native.md).

Sources lie here; build.py compiles them, library.py finds and opens the result. decoding.py, products.py, training.py
call it, with the arrays that weights.py checks; matrix.py and packing.py say what weights of each type are. Without a
library nothing is missing but speed: MindSpore does the same.
"""
