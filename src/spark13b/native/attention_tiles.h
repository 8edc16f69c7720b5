// What attention and its gradient by tiles have in common: see tile_attention.cpp and tile_attention_gradient.cpp.
#pragma once

#include "memory.h"
#include "tiles.h"

#ifdef SPARK13B_TILES

#include <algorithm>
#include <cstdint>

namespace tiles {

constexpr int64_t kSquare = kSide * kSide;  // 32 x 32 scores, or sums
constexpr float kLog2OfE = 1.44269504f, kLogOf2 = 0.693147181f;

// One caller at a time has the pool, and with it this. Null when there is none.
inline char* memory_of(int64_t size) {
    static KeptMemory* memory = new KeptMemory;
    return memory->of(size);
}

// 2^x: a polynomial of x's fraction, as exact as the numbers that come of it (8e-5; 8e-8 of three parts).
template <int PARTS>
TILES inline __m512 power_of_two(__m512 x) {
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p;
    if constexpr (PARTS == 1) {
        p = _mm512_set1_ps(0.0780245227f);
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.226067155f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.695833541f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.999925219f));
    } else {
        p = _mm512_set1_ps(0.000217022555f);
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.00124396878f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.009678841f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.055483342f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240229836f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693146984f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    }
    return _mm512_scalef_ps(p, x);  // times 2^floor(x)
}

// 32 numbers of a row of a left factor, as its panel has them.
template <int PARTS>
TILES inline void pack_row(__m512 first, __m512 second, __m512i* parts) {
    if constexpr (PARTS == 1)
        parts[0] = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    else
        split<PARTS>(first, second, parts);
}

// Which of 32 keys a step the 32 queries of a panel see.
struct Sight {
    int64_t position, window;  // of the first query among the keys

    int64_t begin() const { return std::max<int64_t>(0, position - window + 1) / kSide; }  // in steps, of any of them
    int64_t end(int64_t rows) const { return (position + rows - 1) / kSide + 1; }
    // Whether all 32 queries see all keys of these steps.
    bool all(int64_t begin, int64_t end) const {
        return end * kSide - 1 <= position && position + kSide - 1 - window < begin * kSide;
    }
};

// The keys that one query sees, counted from the first of some vectors.
class Seen {
  public:
    TILES Seen(const Sight& sight, int64_t row, int64_t first) {
        const int64_t last = sight.position + row - first;
        last_ = _mm512_set1_epi32(static_cast<int32_t>(std::clamp<int64_t>(last, -1, kFar)));
        before_ = _mm512_set1_epi32(static_cast<int32_t>(std::clamp<int64_t>(last - sight.window, -1, kFar)));
    }

    TILES __mmask16 of(int64_t key) const {
        const __m512i keys = _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                              _mm512_set1_epi32(static_cast<int32_t>(key)));
        return _mm512_cmple_epi32_mask(keys, last_) & _mm512_cmpgt_epi32_mask(keys, before_);
    }

  private:
    static constexpr int64_t kFar = 1 << 20;
    __m512i last_, before_;
};

// `rows` <= 32 rows of `size` times `scale`, side by side.
TILES inline void scale_rows(const float* from, int64_t row, int64_t rows, int64_t size, float scale, float* to) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t d = 0; d < size; d += 16)
            _mm512_mask_storeu_ps(to + r * size + d, first_of(size - d),
                                  _mm512_mul_ps(load(from + r * row + d, size - d), _mm512_set1_ps(scale)));
}

// A row of `size` out of the squares of its panel's sums, times `factor`.
TILES inline void write_row(const float* sums, int64_t size, float factor, float* to) {
    for (int64_t d = 0; d < size; d += 16)
        _mm512_mask_storeu_ps(to + d, first_of(size - d),
                              _mm512_mul_ps(_mm512_load_ps(sums + d / kSide * kSquare + d % kSide), _mm512_set1_ps(factor)));
}

// 32 rows from `data` on as columns of a right factor whose depth is their numbers: scores = queries x keys^T.
template <int PARTS, class Element>
inline void pack_columns(const Element* data, int64_t row, int64_t rows, int64_t size, char* to) {
    pack_panel<PARTS, true>(Operand<Element>{data, row, 1}, rows, size, to);
}

// 32 rows from `data` on as a step, number `step` of `steps`, of a right factor's depth: out = weights x values.
template <int PARTS, class Element>
inline void pack_step(const Element* data, int64_t row, int64_t rows, int64_t size, int64_t step, int64_t steps, char* to) {
    for (int64_t d = 0; d < size; d += kSide)
        pack_panel<PARTS, true>(Operand<Element>{data + d, 1, row}, std::min(kSide, size - d), rows,
                                       to + (d / kSide * steps + step) * step_bytes(PARTS));
}

}  // namespace tiles

#endif
