"""The native library: decode steps in C++, without an operator to dispatch. docs/native.md says what it is for.

kernels.h is the arithmetic, pool.h the threads, decode.cpp a step, weights.h and model.h what it reads; build.py
compiles them, library.py finds and calls the result. Without a library nothing is missing: MindSpore does the same.
"""
