// The arithmetic of kernels.h as a table of functions, for each set of instructions (levels.h).
#pragma once

#include <cstdint>

#include "weights.h"

struct Arithmetic {
    void (*linear)(const Matrix& w, const float* bias, const float* x, int64_t texts, int64_t in, bool adds, float* y,
                   int64_t y_stride, int64_t begin, int64_t end);
    void (*row)(const Matrix& w, int64_t which, int64_t in, float* out);
    void (*open_strip)(const Matrix& w, int64_t first, int64_t in, bool narrow, void* out);
    void (*gated_gelu)(float* gate, const float* value, int64_t count);
    void (*attend)(const float* q, const void* keys, const void* values, int32_t type, int64_t count, int64_t size,
                   float* scores, float* out);
    void (*layer_norm)(const float* x, const float* gamma, const float* beta, int64_t size, float epsilon, float* out);
    // By whole numbers, with has_whole_numbers() alone, of int8 and int4 weights: row `row` of `rows` as it is multiplied, into
    // rounded_size(in, group) bytes for each and 64, at a cache line; `linear` of all of them; and the same, to the last bit, by
    // AMX, with has_byte_tiles() alone.
    void (*round_row)(const float* x, int64_t row, int64_t rows, int64_t in, int64_t group, int8_t* rounded);
    using OfRounded = void (*)(const Matrix& w, const float* bias, int8_t* rounded, int64_t rows, int64_t in, bool adds,
                               float* y, int64_t y_stride, int64_t begin, int64_t end);
    OfRounded linear_of_rounded, linear_by_tiles;
};

inline constexpr int64_t kRoundedRows = 16;  // rows of a block

inline int64_t rounded_size(int64_t in, int64_t group) { return 2 * in + 8 * (in / group); }

const Arithmetic& arithmetic_of_baseline();
#ifdef __x86_64__
const Arithmetic& arithmetic_of_avx2();
const Arithmetic& arithmetic_of_avx512();
#endif

inline const Arithmetic& arithmetic(int level) {
#ifdef __x86_64__
    if (level >= 2) return arithmetic_of_avx512();
    if (level == 1) return arithmetic_of_avx2();
#endif
    (void)level;
    return arithmetic_of_baseline();
}
