// Products of int8 and int4 weights by inputs of 16 bits, with instructions for products of bytes: AVX-512's or AVX2's VNNI, or
// aarch64's SDOT. Part of kernels.h.
//
// Inputs of a group are whole numbers up to 127 * 256, 256 high + low with both a signed byte, by the group's scale. An
// instruction multiplies bytes by bytes, and adds four products to each lane's sum. Those of x86-64 want weights without a sign:
// they come as level + 128, and 128 times the group's inputs are taken off at the end. A group's sum is at most 128 * 128 * 127 *
// 256, half of what 32 bits hold; sums on the way there may overflow, since what is added to them brings them back.

#if LEVEL >= 2
#define BYTES                                                                                            \
    __attribute__((                                                                                     \
        target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni" WHOLE_VECTORS)))
#elif LEVEL == 1
#define BYTES __attribute__((target("avx2,fma,f16c,avxvnni")))
#elif defined(__clang__)
#define BYTES __attribute__((target("dotprod")))
#else
#define BYTES __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

// What is changed in weights for those instructions: a byte's highest bit, which makes a level level + 128, without a sign.
constexpr int32_t kChanged = LEVEL > 0 ? static_cast<int32_t>(0x80808080) : 0;

// The four products of each lane's bytes, added to `sums`.
BYTES static inline Integers add_products(Integers sums, Integers weights, Integers inputs) {
#if LEVEL >= 2
    return (Integers)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)inputs);
#elif LEVEL == 1
    return (Integers)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)weights, (__m256i)inputs);
#else
    return (Integers)vdotq_s32((int32x4_t)sums, (int8x16_t)weights, (int8x16_t)inputs);
#endif
}

// The nearest whole numbers.
KERNEL static inline Integers nearest(Vector from) {
#if LEVEL >= 2
    return (Integers)_mm512_cvtps_epi32((__m512)from);
#elif LEVEL == 1
    return (Integers)_mm256_cvtps_epi32((__m256)from);
#else
    return (Integers)vcvtnq_s32_f32((float32x4_t)from);
#endif
}

// The lowest byte of each lane.
KERNEL static inline void put_bytes(Integers from, int8_t* to) {
#if LEVEL >= 2
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)from));
#elif LEVEL == 1
    const __m256i lowest = _mm256_set1_epi32(0x0c080400);  // of each half, four times
    const __m256i bytes = _mm256_shuffle_epi8((__m256i)from, lowest);
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64((__m128i*)to, both);
#else
    for (int l = 0; l < LANES; ++l) to[l] = static_cast<int8_t>(from[l]);
#endif
}

// Some of a block of rows as round_row leaves them: of each group all rows of the block, one after the other.
struct RoundedRows {
    int8_t* bytes;         // of each group and row: its high bytes, then its low ones
    int32_t* corrections;  // of each group and row: what is added to its sums of products
    float* scales;         // of each group and row
    int64_t rows;          // of the block, from one group to the next

    template <class Quads, bool FULL, int TEXTS>
    KERNEL void multiply(const Strip& strip, int64_t group, int64_t in, const float* bias, bool adds, float* y,
                         int64_t y_stride) const;
    template <class Quads, bool FULL, int PARTS, int TEXTS>
    BYTES void multiply_some(const Strip& strip, int64_t first, int64_t text, int64_t group, int64_t in, const float* bias,
                            bool adds, float* y, int64_t y_stride) const;
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
            const Vector now = load(x + i), size = now < 0.0f ? -now : now;
            most = size > most ? size : most;
            poison += now - now;
        }
        float largest = 0.0f;
        for (int i = 0; i < LANES; ++i) largest = std::max(largest, most[i]);
        const bool finite = sum_of(poison) == 0.0f;
        const Vector inverse = splat(finite && largest > 1e-30f ? 32512.0f / largest : 0.0f);
        Integers sum = {};
        for (int64_t i = 0; i < group; i += LANES) {
            const Integers whole = nearest((finite ? load(x + i) : Vector{}) * inverse);
            put_bytes((whole + 128) >> 8, high + i);
            put_bytes(whole, low + i);
            sum += whole;
        }
        int32_t total = 0;
        for (int i = 0; i < LANES; ++i) total += sum[i];
        to.corrections[g * to.rows] = kChanged ? -128 * total : 0;
        to.scales[g * to.rows] = finite ? largest / 32512.0f : std::numeric_limits<float>::quiet_NaN();
    }
}

// sums + a group's whole sums by the scales of weights and inputs; one way to do it, so that bits are the same whoever does.
KERNEL static inline Vector add_group(Vector sums, Integers whole, Vector scale, float own_scale) {
#if LEVEL >= 2
    return (Vector)_mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)whole), (__m512)(scale * own_scale), (__m512)sums);
#elif LEVEL == 1
    return (Vector)_mm256_fmadd_ps(_mm256_cvtepi32_ps((__m256i)whole), (__m256)(scale * own_scale), (__m256)sums);
#else
    return (Vector)vfmaq_f32((float32x4_t)sums, vcvtq_f32_s32((int32x4_t)whole), (float32x4_t)(scale * own_scale));
#endif
}

// 8 columns of `count` rows of a strip of `height`, a byte each.
template <class Quads, bool FULL>
KERNEL static inline void open_bytes(const uint8_t* w, int64_t height, int64_t count, Integers (&quads)[2]) {
    if constexpr (Quads::kQuads == 2) {
        Quads::template open<kChanged>(load_lanes<FULL>(w, count), quads);
    } else {
        quads[0] = load_lanes<FULL>(w, count) ^ kChanged;
        quads[1] = load_lanes<FULL>(w + 4 * height, count) ^ kChanged;
    }
}

KERNEL static inline Integers four_bytes(const void* from) {
    int32_t bytes;
    std::memcpy(&bytes, from, 4);
    return bytes - Integers{};
}

template <class Quads, bool FULL, int TEXTS>
KERNEL void RoundedRows::multiply(const Strip& strip, int64_t group, int64_t in, const float* bias, bool adds, float* y,
                                  int64_t y_stride) const {
    // as many rows of weights and of inputs at once as registers hold sums
    constexpr int kAll = kStrip / LANES, kParts = TEXTS <= 2 ? kAll : 1, kTexts = LEVEL == 1 ? std::min(TEXTS, 4) : TEXTS;
    for (int part = 0; part < kAll; part += kParts)
        for (int t = 0; t < TEXTS; t += kTexts)
            multiply_some<Quads, FULL, kParts, kTexts>(strip, part * LANES, t, group, in, bias, adds, y, y_stride);
}

// LANES rows of a strip, from row `first` on, for each of PARTS such parts of it, by TEXTS rows of inputs, from row `text` on.
template <class Quads, bool FULL, int PARTS, int TEXTS>
BYTES void RoundedRows::multiply_some(const Strip& strip, int64_t first, int64_t text, int64_t group, int64_t in,
                                     const float* bias, bool adds, float* y, int64_t y_stride) const {
    constexpr int kChains = PARTS * TEXTS <= 2 ? 2 : 1;  // one chain of additions waits 5 cycles for each
    const int64_t height = FULL ? kStrip : strip.height, step = (Quads::kQuads == 1 ? 8 : 4) * height;
    const int64_t groups = in / group;
    int64_t counts[PARTS];
    for (int p = 0; p < PARTS; ++p) counts[p] = std::clamp<int64_t>(height - first - p * LANES, 0, LANES);
    const uint8_t* w = strip.data + 4 * first;
    const uint16_t* strip_scales = strip.scales + first;
    Vector sums[PARTS][TEXTS] = {};
    for (int64_t g = 0; g < groups; ++g, strip_scales += height) {
        Integers high[kChains][PARTS][TEXTS] = {}, low[kChains][PARTS][TEXTS] = {};
        const int64_t row = g * rows + text;
        const int8_t* own = bytes + row * 2 * group;
        for (int64_t i = 0; i < group; i += 8, w += step) {
            Integers quads[PARTS][2];
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; ++p) open_bytes<Quads, FULL>(w + 4 * p * LANES, height, counts[p], quads[p]);
            __builtin_prefetch(w + kAhead);
            if (Quads::kQuads == 1) __builtin_prefetch(w + kAhead + 64);
#pragma GCC unroll 8
            for (int t = 0; t < TEXTS; ++t)
#pragma GCC unroll 2
                for (int q = 0; q < 2; ++q) {
                    const int8_t* from = own + t * 2 * group + i + 4 * q;
                    const Integers upper = four_bytes(from), lower = four_bytes(from + group);
#pragma GCC unroll 4
                    for (int p = 0; p < PARTS; ++p) {
                        Integers &own_high = high[q % kChains][p][t], &own_low = low[q % kChains][p][t];
                        own_high = add_products(own_high, quads[p][q], upper);
                        own_low = add_products(own_low, quads[p][q], lower);
                    }
                }
        }
        __builtin_prefetch(strip_scales + 16 * height);
#pragma GCC unroll 4
        for (int p = 0; p < PARTS; ++p) {
            const Vector scale = load_scales<FULL>(strip_scales + p * LANES, counts[p]);
#pragma GCC unroll 8
            for (int t = 0; t < TEXTS; ++t) {
                Integers all_high = high[0][p][t], all = low[0][p][t];
                if (kChains == 2) {
                    all_high += high[kChains - 1][p][t];
                    all += low[kChains - 1][p][t];
                }
                all += (all_high << 8) + four_bytes(corrections + row + t);
                sums[p][t] = add_group(sums[p][t], all, scale, scales[row + t]);
            }
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; ++p)
#pragma GCC unroll 8
        for (int t = 0; t < TEXTS; ++t)
            if (const int64_t o = first + p * LANES; o < height)
                finish(sums[p][t], bias ? bias + o : nullptr, adds, y + (text + t) * y_stride + o, height - o);
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
