// Matrix products by AMX: tiles of 16 rows of 64 bytes, bfloat16 in, float32 sums.
//
// A number is one bfloat16, or the sum of three: a = a0 + a1 + a2, each the nearest to what is left, hold all 24 bits of a
// float32. Of the nine products of two such sums those six that are above 2^-24 of the whole are computed, which is a
// float32's own precision, at 16 / 6 of the rate of float32's own instructions (Henry, Tang, Heinecke, "Leveraging the
// bfloat16 artificial intelligence datatype for higher-precision computations", 2019).
//
// An operand is packed in panels of 32 rows (of a) or columns (of b), for each 32 numbers of depth one tile for each part
// and each 16 of the 32. A tile's lanes are pairs of depth: those of a are (row, pair), those of b (pair, column).
#pragma once

#include "levels.h"

#ifdef SPARK13B_TILES

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

// The attribute of every function with tiles; clang and GCC do not inline it into others.
#define TILES \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16" WHOLE_VECTORS)))

namespace tiles {

constexpr int64_t kSide = 32;        // rows or columns of a panel, and depth of a step
constexpr int64_t kTileBytes = 1024;

// Bytes of a step of a panel.
constexpr int64_t step_bytes(int parts) { return 2 * parts * kTileBytes; }
constexpr int64_t steps_of(int64_t depth) { return (depth + kSide - 1) / kSide; }

// The calling thread's tiles are of the usual size as long as one of these lives.
class Turn {
  public:
    TILES Turn() {
        alignas(64) static const Shapes shapes;
        _tile_loadconfig(&shapes);
    }
    TILES ~Turn() { _tile_release(); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

  private:
    struct Shapes {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
};

// c (32, 32) = a b, or c += a b, over `steps` steps of packed panels. STREAMS: b goes by the first cache, where the rest stays.
template <int PARTS, bool STREAMS = false>
TILES inline void multiply(const char* a, const char* b, int64_t steps, bool adds, float* c) {
    constexpr int64_t kStep = step_bytes(PARTS), kPart = 2 * kTileBytes, kRow = kSide * sizeof(float);
    if (adds) {
        _tile_loadd(0, c, kRow);
        _tile_loadd(1, c + 16, kRow);
        _tile_loadd(2, c + 16 * kSide, kRow);
        _tile_loadd(3, c + 16 * kSide + 16, kRow);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
#define LOAD_A(part)                                        \
    _tile_loadd(4, a + s * kStep + (part) * kPart, 64);     \
    _tile_loadd(5, a + s * kStep + (part) * kPart + kTileBytes, 64)
#define LOAD_B(part)                                                              \
    if (STREAMS) {                                                                \
        _tile_stream_loadd(6, b + s * kStep + (part) * kPart, 64);                \
        _tile_stream_loadd(7, b + s * kStep + (part) * kPart + kTileBytes, 64);   \
    } else {                                                                      \
        _tile_loadd(6, b + s * kStep + (part) * kPart, 64);                       \
        _tile_loadd(7, b + s * kStep + (part) * kPart + kTileBytes, 64);          \
    }
#define ADD_PRODUCTS         \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    _tile_dpbf16ps(2, 5, 6); \
    _tile_dpbf16ps(3, 5, 7)
    if (PARTS == 3)  // the small ones first: the large ones' rounding is then that of one product
        for (int64_t s = 0; s < steps; ++s) {
            LOAD_A(2);
            LOAD_B(0);
            ADD_PRODUCTS;
            LOAD_A(1);
            ADD_PRODUCTS;
            LOAD_B(1);
            ADD_PRODUCTS;
            LOAD_A(0);
            ADD_PRODUCTS;
            LOAD_B(2);
            ADD_PRODUCTS;
        }
    for (int64_t s = 0; s < steps; ++s) {
        LOAD_A(0);
        LOAD_B(0);
        ADD_PRODUCTS;
    }
#undef LOAD_A
#undef LOAD_B
#undef ADD_PRODUCTS
    _tile_stored(0, c, kRow);
    _tile_stored(1, c + 16, kRow);
    _tile_stored(2, c + 16 * kSide, kRow);
    _tile_stored(3, c + 16 * kSide + 16, kRow);
}

// Pairs (first, second) of each lane, in PARTS parts, each the nearest to what is left.
template <int PARTS>
TILES inline void split(__m512 first, __m512 second, __m512i* parts) {
    if constexpr (PARTS == 1) {
        const __m512i one = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
        const __m512i two = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
        parts[0] = _mm512_or_si512(one, _mm512_slli_epi32(two, 16));
    } else {
        const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000)), half = _mm512_set1_epi32(0x8000);
        for (int part = 0; part < PARTS; ++part) {
            const __m512i one = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(first), half), upper);
            const __m512i two = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(second), half), upper);
            parts[part] = _mm512_or_si512(_mm512_srli_epi32(one, 16), two);
            first = _mm512_sub_ps(first, _mm512_castsi512_ps(one));
            second = _mm512_sub_ps(second, _mm512_castsi512_ps(two));
        }
    }
}

// 16 vectors of 16 pairs become their transpose.
TILES inline void transpose(__m512i* rows) {
    __m512i t[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 2; ++j) {
            rows[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
            rows[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
        }
    for (int half = 0; half < 2; ++half)
        for (int j = 0; j < 4; ++j) {
            const __m512i a = rows[8 * half + j], b = rows[8 * half + 4 + j];
            t[8 * half + j] = _mm512_shuffle_i32x4(a, b, 0x88);
            t[8 * half + 4 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        }
    for (int j = 0; j < 4; ++j) {
        rows[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
        rows[4 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0x88);
        rows[12 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0xdd);
    }
}

// Where an operand lies: row i (of a; column, of b), number d of its depth at data[i * row + d * depth]; one of both is 1.
template <class Element>
struct Operand {
    const Element* data;
    int64_t row, depth;
};

// The first `count` of 16 lanes.
inline __mmask16 first_of(int64_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffff : count > 0 ? (1u << count) - 1 : 0);
}

TILES inline __m512 load(const float* from, int64_t count) {
    if (count >= 16) return _mm512_loadu_ps(from);
    return _mm512_maskz_loadu_ps(first_of(count), from);
}

TILES inline __m512i load_narrow(const uint16_t* from, int64_t count) {
    if (count >= 32) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(count > 0 ? (1u << count) - 1 : 0), from);
}

TILES inline __m512 widened(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

TILES inline __m512 load(const uint16_t* from, int64_t count) {
    return widened(_mm256_maskz_loadu_epi16(first_of(count), from));
}

// A step's 16 rows and 32 numbers of depth, or fewer with zeros behind them, of one of the two tiles of a panel. ACROSS: as
// a tile of b. Pairs are (2 j, 2 j + 1) of one part, (j, j + 16) of three: each what is quicker.
template <int PARTS, bool ACROSS, class Element>
TILES inline void pack_tile(const Operand<Element>& from, int64_t rows, int64_t depth, char* to) {
    constexpr int64_t kPart = 2 * kTileBytes;
    const auto at = [&](int64_t i, int part) { return to + part * kPart + i * 64; };
    __m512i parts[PARTS];
    const bool along = from.depth == 1;
    for (int64_t i = 0; i < 16; ++i) {
        if (along) {
            const Element* row = from.data + i * from.row;
            if (i >= rows) {
                for (__m512i& part : parts) part = _mm512_setzero_si512();
            } else if constexpr (PARTS == 1 && sizeof(Element) == 2) {
                parts[0] = load_narrow(row, depth);
            } else if constexpr (PARTS == 1) {
                parts[0] = (__m512i)_mm512_cvtne2ps_pbh(load(row + 16, depth - 16), load(row, depth));
            } else {
                split<PARTS>(load(row, depth), load(row + 16, depth - 16), parts);
            }
        } else {
            const int64_t first = PARTS == 1 ? 2 * i : i, second = PARTS == 1 ? 2 * i + 1 : i + 16;
            split<PARTS>(load(from.data + first * from.depth, first < depth ? rows : 0),
                         load(from.data + second * from.depth, second < depth ? rows : 0), parts);
        }
        for (int part = 0; part < PARTS; ++part) _mm512_storeu_si512(at(i, part), parts[part]);
    }
    if (along == ACROSS)
        for (int part = 0; part < PARTS; ++part) {
            __m512i square[16];
            for (int i = 0; i < 16; ++i) square[i] = _mm512_loadu_si512(at(i, part));
            transpose(square);
            for (int i = 0; i < 16; ++i) _mm512_storeu_si512(at(i, part), square[i]);
        }
}

// A panel: `rows` <= 32 and all of `depth`, zeros behind both.
template <int PARTS, bool ACROSS, class Element>
TILES inline void pack_panel(const Operand<Element>& from, int64_t rows, int64_t depth, char* to) {
    for (int64_t d = 0; d < depth; d += kSide, to += step_bytes(PARTS))
        for (int64_t half = 0; half < 2; ++half)
            pack_tile<PARTS, ACROSS>(
                Operand<Element>{from.data + half * 16 * from.row + d * from.depth, from.row, from.depth},
                rows - half * 16, std::min(kSide, depth - d), to + half * kTileBytes);
}

}  // namespace tiles

#endif
