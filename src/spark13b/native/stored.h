// How weights of each type are read, for each set of instructions: see each_level.h. Part of kernels.h.
//
// `Stored...::add` adds, for ROWS rows of W from row `o` on and TEXTS rows of x, all products of a row to one vector of sums
// each, and asks the memory for the ROWS rows that come next: short rows are beyond what processors look ahead by themselves
// (that doubled the speed of all types but float32). A weight of int8 or int4 is a whole number by its group's scale, a bfloat16: that product is exact in float32,
// so that every set of instructions, and whoever widens the weights otherwise, has the same weights.

// `rows` of texts: how many rows at once, as many sums as registers hold (32 with AVX-512, else 16).
static constexpr int usual_rows(int texts) { return texts <= 2 ? 4 : LANES == 16 || texts <= 4 ? 2 : 1; }

// float32 and bfloat16: rows of numbers.
template <class Element>
struct StoredNumbers {
    static constexpr int rows(int texts) { return usual_rows(texts); }

    template <int ROWS, int TEXTS>
    KERNEL static inline void add(const Matrix& matrix, int64_t o, const float* x, int64_t in,
                                  Vector (&sums)[ROWS][TEXTS]) {
        const Element* w = static_cast<const Element*>(matrix.data) + o * in;
        int64_t i = 0;
        for (; i + LANES <= in; i += LANES) {
            Vector weights[ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                weights[r] = load(w + r * in + i);
                __builtin_prefetch((const char*)(w + r * in + i) + ROWS * in * sizeof(Element));
            }
#pragma GCC unroll 8
            for (int t = 0; t < TEXTS; ++t) {
                const Vector inputs = load(x + t * in + i);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) sums[r][t] += weights[r] * inputs;
            }
        }
        if (i < in)
            for (int t = 0; t < TEXTS; ++t) {
                const Vector inputs = load_some(x + t * in + i, in - i);
                for (int r = 0; r < ROWS; ++r) sums[r][t] += load_some(w + r * in + i, in - i) * inputs;
            }
    }

    KERNEL static inline void row(const Matrix& matrix, int64_t o, int64_t in, float* out) {
        const Element* w = static_cast<const Element*>(matrix.data) + o * in;
        for (int64_t i = 0; i < in; ++i) out[i] = widened(w[i]);
    }
};

// int8: rows of bytes; `in` is a multiple of the group, and that one of 32.
struct StoredInt8 {
    static constexpr int rows(int texts) { return usual_rows(texts); }

    template <int ROWS, int TEXTS>
    KERNEL static inline void add(const Matrix& matrix, int64_t o, const float* x, int64_t in,
                                  Vector (&sums)[ROWS][TEXTS]) {
        const int64_t group = matrix.group, groups = in / group;
        const int8_t* w = static_cast<const int8_t*>(matrix.data) + o * in;
        const uint16_t* scales = static_cast<const uint16_t*>(matrix.scales) + o * groups;
        for (int64_t g = 0; g < groups; ++g) {
            Vector scale[ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                scale[r] = splat_widened(scales[r * groups + g]);
                __builtin_prefetch(w + r * in + g * group + ROWS * in);
                if (group == 128) __builtin_prefetch(w + r * in + g * group + 64 + ROWS * in);
            }
            for (int64_t i = g * group; i < (g + 1) * group; i += LANES) {
                Vector weights[ROWS];
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r)
                    weights[r] = __builtin_convertvector(widened_bytes(w + r * in + i), Vector) * scale[r];
#pragma GCC unroll 8
                for (int t = 0; t < TEXTS; ++t) {
                    const Vector inputs = load(x + t * in + i);
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; ++r) sums[r][t] += weights[r] * inputs;
                }
            }
        }
    }

    KERNEL static inline void row(const Matrix& matrix, int64_t o, int64_t in, float* out) {
        const int8_t* w = static_cast<const int8_t*>(matrix.data) + o * in;
        const uint16_t* scales = static_cast<const uint16_t*>(matrix.scales) + o * (in / matrix.group);
        for (int64_t i = 0; i < in; i += matrix.group) {
            const Vector scale = splat_widened(*scales++);
            for (int64_t d = i; d < i + matrix.group; d += LANES)
                store(out + d, __builtin_convertvector(widened_bytes(w + d), Vector) * scale);
        }
    }
};

// int4: rows of blocks of 128 weights, 16 lanes of 32 bits; the four bits j of lane l are weight 16 j + l, one of kLevels.
// GROUP: that of the matrix when it is known while this is compiled, else 0.
template <int GROUP>
struct StoredInt4 {
    static constexpr int rows(int texts) { return LANES == 16 ? usual_rows(texts) : texts == 1 ? 2 : 1; }

    // A block's lanes, from which pairs of weights 32 p + l and 32 p + 16 + l are taken, p = 0 to 3 or 3 to 0.
#if LEVEL == 2
    struct Block {
        static constexpr bool kForwards = true;
        typedef Vector Scale;  // the 16 levels times the scale: then a look-up is the whole work
        Integers lanes;

        KERNEL static inline Scale scaled(uint16_t scale) { return load(kLevels) * splat_widened(scale); }
        KERNEL inline void open(const uint8_t* from) { std::memcpy(&lanes, from, sizeof lanes); }
        KERNEL inline Vector weights(int second, int, const Scale& scale) const {
            const __m512i which = _mm512_srli_epi32((__m512i)lanes, second * 4);
            return (Vector)_mm512_permutexvar_ps(which, (__m512)scale);  // by the low 4 bits of each lane alone
        }
        KERNEL inline void next() { lanes = (Integers)_mm512_srli_epi32((__m512i)lanes, 8); }
    };
#elif LEVEL == 1
    struct Block {
        static constexpr bool kForwards = false;
        typedef Vector Scale;
        Integers levels[2][2];  // a byte for each weight of a lane, by which of a pair and half of the lanes

        KERNEL static inline Scale scaled(uint16_t scale) { return splat_widened(scale); }
        KERNEL inline void open(const uint8_t* from) {
            const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kLevelBytes));
            const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                const __m256i all = _mm256_loadu_si256((const __m256i*)(from + 32 * half));
                levels[0][half] = (Integers)_mm256_shuffle_epi8(table, _mm256_and_si256(all, low));
                levels[1][half] =
                    (Integers)_mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(all, 4), low));
            }
        }
        KERNEL inline Vector weights(int second, int half, const Scale& scale) const {
            return __builtin_convertvector(levels[second][half] >> 24, Vector) * scale;
        }
        KERNEL inline void next() {
            for (auto& pair : levels)
                for (auto& half : pair) half <<= 8;
        }
    };
#else
    struct Block {
        static constexpr bool kForwards = true;
        typedef float Scale;
        uint32_t lanes[16];

        KERNEL static inline Scale scaled(uint16_t scale) { return widened(scale); }
        KERNEL inline void open(const uint8_t* from) { std::memcpy(lanes, from, sizeof lanes); }
        KERNEL inline Vector weights(int second, int part, Scale scale) const {
            float found[LANES];
            for (int l = 0; l < LANES; ++l) found[l] = kLevels[lanes[part * LANES + l] >> (4 * second) & 15];
            return load(found) * scale;
        }
        KERNEL inline void next() {
            for (auto& lane : lanes) lane >>= 8;
        }
    };
#endif

    template <int ROWS, int TEXTS>
    KERNEL static inline void add(const Matrix& matrix, int64_t o, const float* x, int64_t in,
                                  Vector (&sums)[ROWS][TEXTS]) {
        const int64_t group = GROUP ? GROUP : matrix.group, groups = in / group, per_block = 128 / group;
        const int64_t pairs = group / 32, row_bytes = in / 2;
        const uint8_t* w = static_cast<const uint8_t*>(matrix.data) + o * row_bytes;
        const uint16_t* scales = static_cast<const uint16_t*>(matrix.scales) + o * groups;
        for (int64_t b = in / 128; b > 0; --b, w += 64, scales += per_block, x += 128) {
            Block blocks[ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                blocks[r].open(w + r * row_bytes);
                __builtin_prefetch(w + (r + ROWS) * row_bytes);
            }
#pragma GCC unroll 4
            for (int64_t step = 0; step < per_block; ++step) {
                const int64_t g = Block::kForwards ? step : per_block - 1 - step;
                typename Block::Scale scale[ROWS];
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) scale[r] = Block::scaled(scales[r * groups + g]);
#pragma GCC unroll 4
                for (int64_t pair = 0; pair < pairs; ++pair) {
                    const float* from = x + g * group + (Block::kForwards ? pair : pairs - 1 - pair) * 32;
#pragma GCC unroll 2
                    for (int second = 0; second < 2; ++second)
#pragma GCC unroll 4
                        for (int part = 0; part < 16 / LANES; ++part) {
                            Vector weights[ROWS];
#pragma GCC unroll 8
                            for (int r = 0; r < ROWS; ++r) weights[r] = blocks[r].weights(second, part, scale[r]);
#pragma GCC unroll 8
                            for (int t = 0; t < TEXTS; ++t) {
                                const Vector inputs = load(from + t * in + 16 * second + part * LANES);
#pragma GCC unroll 8
                                for (int r = 0; r < ROWS; ++r) sums[r][t] += weights[r] * inputs;
                            }
                        }
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; ++r) blocks[r].next();
                }
            }
        }
    }

    KERNEL static inline void row(const Matrix& matrix, int64_t o, int64_t in, float* out) {
        const int64_t group = matrix.group, groups = in / group, per_block = 128 / group, pairs = group / 32;
        const uint8_t* w = static_cast<const uint8_t*>(matrix.data) + o * in / 2;
        const uint16_t* scales = static_cast<const uint16_t*>(matrix.scales) + o * groups;
        for (int64_t b = 0; b < in / 128; ++b) {
            Block block;
            block.open(w + b * 64);
            for (int64_t step = 0; step < per_block; ++step) {
                const int64_t g = b * per_block + (Block::kForwards ? step : per_block - 1 - step);
                const typename Block::Scale scale = Block::scaled(scales[g]);
                for (int64_t pair = 0; pair < pairs; ++pair) {
                    float* to = out + g * group + (Block::kForwards ? pair : pairs - 1 - pair) * 32;
                    for (int second = 0; second < 2; ++second)
                        for (int part = 0; part < 16 / LANES; ++part)
                            store(to + 16 * second + part * LANES, block.weights(second, part, scale));
                    block.next();
                }
            }
        }
    }
};
