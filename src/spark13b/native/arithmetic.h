// The arithmetic of kernels.h as a table of functions, which decode.cpp compiles for each set of instructions.
#pragma once

#include <cstdint>

#include "weights.h"

struct Arithmetic {
    void (*linear)(const Matrix& w, const float* bias, const float* x, int64_t texts, int64_t in, bool adds, float* y,
                   int64_t y_stride, int64_t begin, int64_t end);
    void (*row)(const Matrix& w, int64_t which, int64_t in, float* out);
    void (*gated_gelu)(float* gate, const float* value, int64_t count);
    void (*attend)(const float* q, const float* keys, const float* values, int64_t count, int64_t size, float* scores,
                   float* out);
    void (*layer_norm)(const float* x, const float* gamma, const float* beta, int64_t size, float epsilon, float* out);
};

const Arithmetic& arithmetic(int level);
