// Products of int8 and int4 weights, which lie in strips (weights.h), for each set of instructions: see each_level.h. Part
// of kernels.h.
//
// The rows of a strip stand across a vector: a weight vector holds the same column of each, its inputs are one number for all,
// and no lanes are added at the end. Four bytes of a row, the 32 bits of a lane, are called a quad.
//
// Every set of instructions can multiply by float32: a weight is a whole number by its group's scale, a bfloat16, and exact in
// float32. With instructions for bytes (VNNI, SDOT) inputs are whole numbers, too: 16 bits with a scale for each group, which is
// 30,000 times as fine as the largest of the group, and sums of a group are exact.

constexpr int64_t kAhead = 4096;  // bytes that memory is asked for ahead of those that are used

// `count` lanes of 32 bits, all when FULL; the others are zeros.
template <bool FULL>
KERNEL static inline Integers load_lanes(const uint8_t* from, int64_t count) {
    Integers lanes = {};
    std::memcpy(&lanes, from, FULL ? sizeof lanes : count * 4);
    return lanes;
}

// `count` scales, bfloat16, all when FULL.
template <bool FULL>
KERNEL static inline Vector load_scales(const uint16_t* from, int64_t count) {
    return FULL ? load(from) : load_some(from, count);
}

struct QuadsInt8 {
    static constexpr int kQuads = 1;  // in 32 bits

    KERNEL static inline void open(Integers lanes, Integers (&quads)[1]) { quads[0] = lanes; }
};

#if LEVEL == 0 && !defined(__aarch64__)
// Of a byte of int4, the level of its low bits in the lowest byte and that of its high bits 32 bits above.
struct Pairs {
    uint64_t of[256];

    constexpr Pairs() : of() {
        for (int i = 0; i < 256; ++i)
            of[i] = static_cast<uint8_t>(kLevelBytes[i & 15]) |
                    static_cast<uint64_t>(static_cast<uint8_t>(kLevelBytes[i >> 4])) << 32;
    }
};
static constexpr Pairs kPairs;
#endif

struct QuadsInt4 {
    static constexpr int kQuads = 2;

    // CHANGED: bits that are changed in the levels, where a look-up finds them
    template <int32_t CHANGED = 0>
    KERNEL static inline void open(Integers lanes, Integers (&quads)[2]) {
#if LEVEL >= 1
        const __m128i levels = _mm_xor_si128(_mm_loadu_si128((const __m128i*)kLevelBytes), _mm_set1_epi32(CHANGED));
#endif
#if LEVEL >= 2
        const __m512i table = _mm512_broadcast_i32x4(levels);
        const __m512i low = _mm512_set1_epi8(15), all = (__m512i)lanes;
        quads[0] = (Integers)_mm512_shuffle_epi8(table, _mm512_and_si512(all, low));
        quads[1] = (Integers)_mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(all, 4), low));
#elif LEVEL == 1
        const __m256i table = _mm256_broadcastsi128_si256(levels);
        const __m256i low = _mm256_set1_epi8(15), all = (__m256i)lanes;
        quads[0] = (Integers)_mm256_shuffle_epi8(table, _mm256_and_si256(all, low));
        quads[1] = (Integers)_mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(all, 4), low));
#elif defined(__aarch64__)
        const int8x16_t table = vreinterpretq_s8_s32(vreinterpretq_s32_s8(vld1q_s8(kLevelBytes)) ^ CHANGED);
        const uint8x16_t all = (uint8x16_t)lanes;
        quads[0] = (Integers)vqtbl1q_s8(table, vandq_u8(all, vdupq_n_u8(15)));
        quads[1] = (Integers)vqtbl1q_s8(table, vshrq_n_u8(all, 4));
#else
        for (int l = 0; l < LANES; ++l) {
            const uint32_t lane = lanes[l];
            uint64_t both = 0;
            for (int k = 0; k < 4; ++k) both |= kPairs.of[lane >> (8 * k) & 255] << (8 * k);
            quads[0][l] = static_cast<int32_t>(both) ^ CHANGED;
            quads[1][l] = static_cast<int32_t>(both >> 32) ^ CHANGED;
        }
#endif
    }
};

// The bytes k of all lanes.
KERNEL static inline Vector byte_of(Integers quads, int k) {
    return __builtin_convertvector(quads << (24 - 8 * k) >> 24, Vector);
}

// Where a strip begins.
struct Strip {
    const uint8_t* data;
    const uint16_t* scales;
    int64_t height;

    KERNEL static inline Strip of(const Matrix& w, int64_t o, int64_t in) {
        return {static_cast<const uint8_t*>(w.data) + o * in * bits_of(w.type) / 8,
                static_cast<const uint16_t*>(w.scales) + o * (in / w.group), std::min(kStrip, w.outputs - o)};
    }
};

// Sums of LANES rows of a strip, from row `first` on, for each of PARTS such parts of it: x (TEXTS, in). FULL: all rows are there.
template <class Quads, bool FULL, int PARTS, int TEXTS>
KERNEL static inline void add_strip(const Strip& strip, int64_t first, int64_t group, const float* x, int64_t in,
                                    Vector (&sums)[PARTS][TEXTS]) {
    constexpr int kChains = LANES == 16 ? 2 : 1;  // one chain of additions waits 4 cycles for each
    constexpr int kColumns = 4 * Quads::kQuads;
    const int64_t height = FULL ? kStrip : strip.height;
    int64_t counts[PARTS];
    for (int p = 0; p < PARTS; ++p) counts[p] = std::max<int64_t>(0, std::min<int64_t>(LANES, height - first - p * LANES));
    const uint8_t* w = strip.data + 4 * first;
    const uint16_t* scales = strip.scales + first;
    for (int64_t g = 0; g < in; g += group, scales += height) {
        Vector own[kChains][PARTS][TEXTS] = {};
        for (int64_t i = g; i < g + group; i += kColumns, w += 4 * height) {
            Integers quads[PARTS][Quads::kQuads];
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; ++p) Quads::open(load_lanes<FULL>(w + 4 * p * LANES, counts[p]), quads[p]);
            __builtin_prefetch(w + kAhead);
#pragma GCC unroll 8
            for (int c = 0; c < kColumns; ++c) {
                Vector weights[PARTS];
#pragma GCC unroll 4
                for (int p = 0; p < PARTS; ++p) weights[p] = byte_of(quads[p][c / 4], c % 4);
#pragma GCC unroll 8
                for (int t = 0; t < TEXTS; ++t) {
                    const Vector inputs = splat(x[t * in + i + c]);
#pragma GCC unroll 4
                    for (int p = 0; p < PARTS; ++p) own[c % kChains][p][t] += weights[p] * inputs;
                }
            }
        }
#pragma GCC unroll 4
        for (int p = 0; p < PARTS; ++p) {
            const Vector scale = load_scales<FULL>(scales + p * LANES, counts[p]);
#pragma GCC unroll 8
            for (int t = 0; t < TEXTS; ++t) {
                Vector all = own[0][p][t];
                if (kChains == 2) all += own[kChains - 1][p][t];
                sums[p][t] += all * scale;
            }
        }
    }
}

// y = sums + bias, or y += that, for up to LANES outputs.
KERNEL static inline void finish(Vector sums, const float* bias, bool adds, float* y, int64_t count) {
    if (bias) sums += take(bias, count);
    if (adds) sums += take(y, count);
    put(y, sums, count);
}

// Products of rows of float32.
struct FloatRows {
    const float* x;

    FloatRows from(int64_t text, int64_t in, int64_t) const { return {x + text * in}; }

    template <class Quads, bool FULL, int TEXTS>
    KERNEL void multiply(const Strip& strip, int64_t group, int64_t in, const float* bias, bool adds, float* y,
                         int64_t y_stride) const {
        constexpr int kAll = kStrip / LANES, kParts = TEXTS <= 2 ? kAll : 1;  // at once, as many as registers hold
        for (int part = 0; part < kAll; part += kParts) {
            Vector sums[kParts][TEXTS] = {};
            add_strip<Quads, FULL, kParts, TEXTS>(strip, part * LANES, group, x, in, sums);
            for (int p = 0; p < kParts; ++p) {
                const int64_t o = (part + p) * LANES;
                for (int t = 0; t < TEXTS && o < strip.height; ++t)
                    finish(sums[p][t], bias ? bias + o : nullptr, adds, y + t * y_stride + o, strip.height - o);
            }
        }
    }
};

template <class Quads, int TEXTS, class Rows>
KERNEL static inline void strips_of(const Matrix& w, const float* bias, const Rows& x, int64_t in, bool adds, float* y,
                                    int64_t y_stride, int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o += kStrip) {
        const Strip strip = Strip::of(w, o, in);
        const float* own_bias = bias ? bias + o : nullptr;
        if (strip.height == kStrip)
            x.template multiply<Quads, true, TEXTS>(strip, w.group, in, own_bias, adds, y + o, y_stride);
        else
            x.template multiply<Quads, false, TEXTS>(strip, w.group, in, own_bias, adds, y + o, y_stride);
    }
}

// The outputs `begin`, a multiple of kStrip, to `end`: one, too, or the last. Weights are read from memory once for all texts.
template <class Quads, class Rows>
KERNEL static void linear_of_strips(const Matrix& w, const float* bias, const Rows& x, int64_t texts, int64_t in, bool adds,
                                    float* y, int64_t y_stride, int64_t begin, int64_t end) {
    for_texts(w, texts, in, kStrip, begin, end, [&](int64_t t, auto count, int64_t from, int64_t to) KERNEL {
        strips_of<Quads, decltype(count)::value>(w, bias, x.from(t, in, w.group), in, adds, y + t * y_stride, y_stride, from, to);
    });
}

// The 32 bits at `from`, those `stride` bytes on, ... in `count` lanes; the others are zeros.
KERNEL static inline Integers gather(const uint8_t* from, int64_t stride, int64_t count) {
#if LEVEL >= 2
    const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i offsets = _mm512_mullo_epi32(numbers, _mm512_set1_epi32(static_cast<int32_t>(stride)));
    return (Integers)_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), (1 << count) - 1, offsets, from, 1);
#elif LEVEL == 1
    const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i offsets = _mm256_mullo_epi32(numbers, _mm256_set1_epi32(static_cast<int32_t>(stride)));
    const __m256i wanted = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(count)), numbers);
    return (Integers)_mm256_mask_i32gather_epi32(_mm256_setzero_si256(), (const int*)from, offsets, wanted, 1);
#else
    int32_t lanes[LANES] = {};
    for (int64_t l = 0; l < count; ++l) std::memcpy(lanes + l, from + l * stride, 4);
    Integers result;
    std::memcpy(&result, lanes, sizeof result);
    return result;
#endif
}

// Quads of one row, lane after lane.
KERNEL static inline void put_in_order(const Integers (&quads)[1], int8_t* to) { std::memcpy(to, quads, sizeof quads); }

KERNEL static inline void put_in_order(const Integers (&quads)[2], int8_t* to) {
#if LEVEL >= 2
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi32((__m512i)quads[0], low, (__m512i)quads[1]));
    _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi32((__m512i)quads[0], high, (__m512i)quads[1]));
#elif LEVEL == 1
    const __m256i low = _mm256_unpacklo_epi32((__m256i)quads[0], (__m256i)quads[1]);
    const __m256i high = _mm256_unpackhi_epi32((__m256i)quads[0], (__m256i)quads[1]);
    _mm256_storeu_si256((__m256i*)to, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i*)(to + 32), _mm256_permute2x128_si256(low, high, 0x31));
#else
    int32_t pairs[2 * LANES];
    for (int l = 0; l < LANES; ++l) pairs[2 * l] = quads[0][l], pairs[2 * l + 1] = quads[1][l];
    std::memcpy(to, pairs, sizeof pairs);
#endif
}

// `count` weights of row `own` of a strip, from column `i` on, whose packed bytes are `lanes`: -> out, float32 or bfloat16.
template <class Quads, class Number>
KERNEL static inline void put_weights(const Strip& strip, int64_t own, int64_t group, Integers lanes, int64_t i, int64_t count,
                                      Number* out) {
    constexpr int64_t kBlock = LANES * 4 * Quads::kQuads;
    constexpr int kTogether = std::min<int64_t>(32, kBlock);  // of one scale: a row's length is a multiple of 32
    Integers quads[Quads::kQuads];
    Quads::open(lanes, quads);
    int8_t levels[kBlock];
    put_in_order(quads, levels);
    for (int64_t g = 0; g < count; g += kTogether) {
        const Vector scale = splat_widened(strip.scales[(i + g) / group * strip.height + own]);
#pragma GCC unroll 8
        for (int d = 0; d < kTogether; d += LANES)
            put(out + g + d, __builtin_convertvector(widened_bytes(levels + g + d), Vector) * scale, LANES);
    }
}

// Row `own` of a strip, from column `i` on -> out, which begins with that column.
template <class Quads, class Number>
KERNEL static inline void put_row(const Strip& strip, int64_t own, int64_t group, int64_t i, int64_t in, Number* out) {
    constexpr int64_t kColumns = 4 * Quads::kQuads, kBlock = LANES * kColumns;
    const uint8_t* from = strip.data + own * 4 + i / kColumns * strip.height * 4;
    for (const int64_t begin = i; i < in; i += kBlock, from += LANES * strip.height * 4) {
        const int64_t count = std::min(kBlock, in - i);
        put_weights<Quads>(strip, own, group, gather(from, strip.height * 4, count / kColumns), i, count, out + i - begin);
    }
}

// Row `which` of W -> out (in).
template <class Quads>
KERNEL static void row_of_strip(const Matrix& w, int64_t which, int64_t in, float* out) {
    const int64_t own = which % kStrip;
    put_row<Quads>(Strip::of(w, which - own, in), own, w.group, 0, in, out);
}

// The strip that begins with row `first` -> its rows, (16 or fewer, in).
template <class Quads, class Number>
KERNEL static void rows_of_strip(const Matrix& w, int64_t first, int64_t in, Number* out) {
    const Strip strip = Strip::of(w, first, in);
    int64_t i = 0;
#if LEVEL >= 2
    constexpr int64_t kBlock = LANES * 4 * Quads::kQuads;
    const uint8_t* from = strip.data;
    for (; strip.height == kStrip && i + kBlock <= in; i += kBlock, from += 16 * 64) {
        Vector rows[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) rows[r] = (Vector)_mm512_loadu_si512(from + r * 64);
        transpose(rows);
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) put_weights<Quads>(strip, r, w.group, (Integers)rows[r], i, kBlock, out + r * in + i);
    }
#endif
    for (int64_t own = 0; i < in && own < strip.height; ++own) put_row<Quads>(strip, own, w.group, i, in, out + own * in + i);
}
