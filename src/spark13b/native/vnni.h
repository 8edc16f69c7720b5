// Products of int8 and int4 weights by inputs of 16 bits, with AVX-512's instructions for bytes. Part of kernels.h.
//
// Inputs of a group are whole numbers up to 127 * 256, 256 high + low with both a signed byte, by the group's scale. An
// instruction multiplies 64 bytes without a sign by 64 with one, and adds four products to each of 16 sums: weights come as
// level + 128, and 128 times the group's inputs are taken off at the end. A group's sum is at most 128 * 128 * 127 * 256, half of
// what 32 bits hold; sums on the way there may overflow, since what is added to them brings them back.

#define VNNI                                                                                            \
    __attribute__((                                                                                     \
        target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni" WHOLE_VECTORS)))

// Some of a block of rows as round_row leaves them: of each group all rows of the block, one after the other.
struct RoundedRows {
    int8_t* bytes;         // of each group and row: its high bytes, then its low ones
    int32_t* corrections;  // of each group and row: -128 times the group's sum
    float* scales;         // of each group and row
    int64_t rows;          // of the block, from one group to the next

    template <class Quads, bool FULL, int TEXTS>
    VNNI void multiply(const Strip& strip, int64_t group, int64_t in, const float* bias, bool adds, float* y,
                       int64_t y_stride) const;
};

// All rows, in blocks of kRoundedRows.
struct Rounded {
    int8_t* data;
    int64_t rows;

    // From that row on to the end of its block.
    KERNEL RoundedRows from(int64_t row, int64_t in, int64_t group) const {
        const int64_t before = row / kRoundedRows * kRoundedRows, own = row - before, groups = in / group;
        const int64_t block = std::min(kRoundedRows, rows - before);
        int8_t* bytes = data + before * rounded_size(in, group);
        int32_t* corrections = reinterpret_cast<int32_t*>(bytes + block * 2 * in);
        float* scales = reinterpret_cast<float*>(corrections + block * groups);
        return {bytes + own * 2 * group, corrections + own, scales + own, block};
    }
};

// Row `row` of `rows`: x (in). A group that holds what is no finite number gets a scale that is none, so that all outputs
// become nan.
KERNEL static void round_row(const float* x, int64_t row, int64_t rows, int64_t in, int64_t group, int8_t* rounded) {
    const RoundedRows to = Rounded{rounded, rows}.from(row, in, group);
    for (int64_t g = 0; g < in / group; ++g, x += group) {
        int8_t *high = to.bytes + g * to.rows * 2 * group, *low = high + group;
        Vector most = {}, poison = {};
        for (int64_t i = 0; i < group; i += LANES) {
            const Vector now = load(x + i);
            most = (Vector)_mm512_max_ps((__m512)most, _mm512_abs_ps((__m512)now));
            poison += now - now;
        }
        const float largest = _mm512_reduce_max_ps((__m512)most);
        const bool finite = sum_of(poison) == 0.0f;
        const Vector inverse = splat(finite && largest > 1e-30f ? 32512.0f / largest : 0.0f);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t i = 0; i < group; i += LANES) {
            const Vector now = finite ? load(x + i) : Vector{};
            const __m512i whole = _mm512_cvtps_epi32((__m512)(now * inverse));
            const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
            _mm_storeu_si128((__m128i*)(high + i), _mm512_cvtepi32_epi8(upper));
            _mm_storeu_si128((__m128i*)(low + i), _mm512_cvtepi32_epi8(whole));
            sum = _mm512_add_epi32(sum, whole);
        }
        to.corrections[g * to.rows] = -128 * _mm512_reduce_add_epi32(sum);
        to.scales[g * to.rows] = finite ? largest / 32512.0f : std::numeric_limits<float>::quiet_NaN();
    }
}

// sums + a group's whole sums by the scales of weights and inputs; one way to do it, so that bits are the same whoever does.
KERNEL static inline Vector add_group(Vector sums, __m512i whole, Vector scale, float own_scale) {
    return (Vector)_mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), (__m512)(scale * own_scale), (__m512)sums);
}

// 8 columns of a strip, each byte level + 128.
template <class Quads, bool FULL>
VNNI static inline void open_unsigned(const uint8_t* w, int64_t height, __m512i (&quads)[2]) {
    const auto read = [&](const uint8_t* from) VNNI {
        return FULL ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi32((1 << height) - 1, from);
    };
    const __m512i offset = _mm512_set1_epi8(-128);
    if (Quads::kQuads == 1) {
        quads[0] = _mm512_xor_si512(read(w), offset);
        quads[1] = _mm512_xor_si512(read(w + 4 * height), offset);
    } else {
        const __m512i levels = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)kLevelBytes));
        const __m512i table = _mm512_xor_si512(levels, offset), low = _mm512_set1_epi8(15), all = read(w);
        quads[0] = _mm512_shuffle_epi8(table, _mm512_and_si512(all, low));
        quads[1] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(all, 4), low));
    }
}

VNNI static inline __m512i four_bytes(const void* from) {
    int32_t bytes;
    std::memcpy(&bytes, from, 4);
    return _mm512_set1_epi32(bytes);
}

template <class Quads, bool FULL, int TEXTS>
VNNI void RoundedRows::multiply(const Strip& strip, int64_t group, int64_t in, const float* bias, bool adds, float* y,
                                int64_t y_stride) const {
    constexpr int kChains = TEXTS <= 2 ? 2 : 1;  // one chain of additions waits 5 cycles for each
    const int64_t height = FULL ? kStrip : strip.height, step = (Quads::kQuads == 1 ? 8 : 4) * height;
    const int64_t groups = in / group;
    const uint8_t* w = strip.data;
    const uint16_t* strip_scales = strip.scales;
    Vector sums[TEXTS] = {};
    for (int64_t g = 0; g < groups; ++g, strip_scales += height) {
        __m512i high[kChains][TEXTS] = {}, low[kChains][TEXTS] = {};
        const int8_t* own = bytes + g * rows * 2 * group;
        for (int64_t i = 0; i < group; i += 8, w += step) {
            __m512i quads[2];
            open_unsigned<Quads, FULL>(w, height, quads);
            __builtin_prefetch(w + kAhead);
            if (Quads::kQuads == 1) __builtin_prefetch(w + kAhead + 64);
#pragma GCC unroll 8
            for (int t = 0; t < TEXTS; ++t)
#pragma GCC unroll 2
                for (int q = 0; q < 2; ++q) {
                    const int8_t* from = own + t * 2 * group + i + 4 * q;
                    __m512i &own_high = high[q % kChains][t], &own_low = low[q % kChains][t];
                    own_high = _mm512_dpbusd_epi32(own_high, quads[q], four_bytes(from));
                    own_low = _mm512_dpbusd_epi32(own_low, quads[q], four_bytes(from + group));
                }
        }
        __builtin_prefetch(strip_scales + 16 * height);
        const Vector scale = load_scales<FULL>(strip_scales, height);
#pragma GCC unroll 8
        for (int t = 0; t < TEXTS; ++t) {
            __m512i all_high = high[0][t], all = low[0][t];
            if (kChains == 2) {
                all_high = _mm512_add_epi32(all_high, high[kChains - 1][t]);
                all = _mm512_add_epi32(all, low[kChains - 1][t]);
            }
            all = _mm512_add_epi32(all, _mm512_slli_epi32(all_high, 8));
            all = _mm512_add_epi32(all, four_bytes(corrections + g * rows + t));
            sums[t] = add_group(sums[t], all, scale, scales[g * rows + t]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < TEXTS; ++t) finish(sums[t], bias, adds, y + t * y_stride, height);
}

// `rounded`: what round_row made of each row of x.
KERNEL static void linear_of_rounded(const Matrix& w, const float* bias, int8_t* rounded, int64_t rows, int64_t in,
                                     bool adds, float* y, int64_t y_stride, int64_t begin, int64_t end) {
    const Rounded x = {rounded, rows};
    if (w.type == kInt8)
        linear_of_strips<QuadsInt8>(w, bias, x, rows, in, adds, y, y_stride, begin, end);
    else
        linear_of_strips<QuadsInt4>(w, bias, x, rows, in, adds, y, y_stride, begin, end);
}
