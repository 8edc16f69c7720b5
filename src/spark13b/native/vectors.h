// Vectors of LANES floats, for each set of instructions: see each_level.h.

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef uint32_t Naturals __attribute__((vector_size(LANES * 4)));

KERNEL static inline Vector splat(float value) { return value - Vector{}; }

KERNEL static inline Vector load(const float* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// The first `count` < LANES numbers, then zeros.
KERNEL static inline Vector load_some(const float* from, int64_t count) {
#if LEVEL == 2
    return (Vector)_mm512_maskz_loadu_ps(static_cast<__mmask16>(count > 0 ? (1u << count) - 1 : 0), from);
#else
    float all[LANES] = {};
    for (int64_t i = 0; i < count; ++i) all[i] = from[i];
    return load(all);
#endif
}

// Whole numbers of 8 and 16 bits, widened. (GCC 12 takes __builtin_convertvector apart, number by number.)
KERNEL static inline Integers widened_bytes(const int8_t* from) {
#if LEVEL == 2
    return (Integers)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif LEVEL == 1
    return (Integers)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    return Integers{from[0], from[1], from[2], from[3]};
#endif
}

KERNEL static inline Integers widened_halves(const uint16_t* from) {
#if LEVEL == 2
    return (Integers)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#elif LEVEL == 1
    return (Integers)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
    return Integers{from[0], from[1], from[2], from[3]};
#endif
}

// bfloat16 -> float32, exact: the upper half of each lane.
KERNEL static inline Vector load(const uint16_t* from) { return (Vector)(widened_halves(from) << 16); }

KERNEL static inline Vector splat_widened(uint16_t from) {
    return (Vector)((static_cast<int32_t>(static_cast<uint32_t>(from) << 16)) - Integers{});
}

// float16 -> float32, exact.
KERNEL static inline Vector load(const Float16* from) {
#if LEVEL == 2
    return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif LEVEL == 1
    return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    return Vector{widened(from[0]), widened(from[1]), widened(from[2]), widened(from[3])};
#endif
}

using ::widened;
KERNEL static inline float widened(float from) { return from; }

template <class Half>
KERNEL static inline Vector load_some(const Half* from, int64_t count) {
    float all[LANES] = {};
    for (int64_t i = 0; i < count; ++i) all[i] = widened(from[i]);
    return load(all);
}

KERNEL static inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

// Lanes by halves: i and i + 8, then i and i + 4, ...
KERNEL static inline float sum_of(Vector v) {
#if LEVEL == 2
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#elif LEVEL == 1
    const __m256 eight = (__m256)v;
#endif
#if LEVEL > 0
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

// e^x to 2 units in the last place: 2^n e^r with |r| <= ln(2) / 2, a polynomial of degree 7 (Cephes' coefficients).
KERNEL static inline Vector exp_of(Vector x) {
    const Vector low = splat(-87.0f), high = splat(88.0f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: what is added there is rounded
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    Vector scale;
    std::memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

// Numbers i .. of a row that has `left` of them from there on.
template <class Number>
KERNEL static inline Vector take(const Number* from, int64_t left) {
    return left >= LANES ? load(from) : load_some(from, left);
}

KERNEL static inline void put(float* to, Vector v, int64_t left) {
    if (left >= LANES)
        store(to, v);
    else
        std::memcpy(to, &v, left * sizeof(float));
}

// bfloat16 in the lower half of each lane: `narrowed` of bfloat16.h.
KERNEL static inline Naturals narrowed_lanes(Vector v) {
    const Naturals bits = (Naturals)v, nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return v == v ? nearest : (bits >> 16 | 0x40);
}

typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

KERNEL static inline void put(uint16_t* to, Vector v, int64_t left) {
#if LEVEL == 2  // GCC 12 takes __builtin_convertvector apart
    const Halves halves = (Halves)_mm512_cvtepi32_epi16((__m512i)narrowed_lanes(v));
#else
    const Halves halves = __builtin_convertvector(narrowed_lanes(v), Halves);
#endif
    if (left >= LANES)
        std::memcpy(to, &halves, sizeof halves);
    else
        std::memcpy(to, &halves, left * sizeof(uint16_t));
}

// GELU's tanh form is z times this sigmoid, 1 / (1 + e^-z(a + b z^2)).
constexpr float kGelu = 1.5957691216057308f, kGeluCube = 0.044715f * kGelu;  // 2 sqrt(2 / pi)

KERNEL static inline Vector sigmoid_of_gelu(Vector z) {
    return 1.0f / (1.0f + exp_of(-z * (kGelu + kGeluCube * (z * z))));
}

// mean and 1 / sqrt(variance + epsilon) of a row.
KERNEL static inline void statistics(const float* x, int64_t width, float epsilon, float& mean, float& scale) {
    Vector sums = {};
    for (int64_t i = 0; i < width; i += LANES) sums += take(x + i, width - i);
    mean = sum_of(sums) / width;
    Vector squares = {};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Vector off = load(x + i) - mean;
        squares += off * off;
    }
    float rest = 0.0f;
    for (; i < width; ++i) rest += (x[i] - mean) * (x[i] - mean);
    scale = 1.0f / std::sqrt((sum_of(squares) + rest) / width + epsilon);
}

// Two rows change places in the lanes across: upper ones of `a` for lower ones of `b`, SIDE apart.
template <int SIDE, int... LANE>
KERNEL static inline void exchange_lanes(Vector& a, Vector& b, std::integer_sequence<int, LANE...>) {
    const Vector first = a, second = b;
#ifdef __clang__
    a = __builtin_shufflevector(first, second, (LANE & SIDE ? LANES + LANE - SIDE : LANE)...);
    b = __builtin_shufflevector(first, second, (LANE & SIDE ? LANES + LANE : LANE + SIDE)...);
#else
    a = __builtin_shuffle(first, second, Integers{(LANE & SIDE ? LANES + LANE - SIDE : LANE)...});
    b = __builtin_shuffle(first, second, Integers{(LANE & SIDE ? LANES + LANE : LANE + SIDE)...});
#endif
}

// A square of LANES rows becomes its transpose: squares of 1, 2, 4, ... rows change places across the diagonal.
template <int SIDE>
KERNEL static inline void exchange(Vector* rows) {
#pragma GCC unroll 16
    for (int r = 0; r < LANES; ++r)
        if (!(r & SIDE)) exchange_lanes<SIDE>(rows[r], rows[r + SIDE], std::make_integer_sequence<int, LANES>{});
}

KERNEL static inline void transpose(Vector* rows) {
    exchange<1>(rows);
    exchange<2>(rows);
#if LANES >= 8
    exchange<4>(rows);
#endif
#if LANES >= 16
    exchange<8>(rows);
#endif
}

// ROWS x COLUMNS vectors of c = a b, or c += a b. Asks memory for ROWS numbers from `ahead` on for each of the depth.
template <int ROWS, int COLUMNS, bool AHEAD = false>
KERNEL static inline void product_tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
                                       int64_t b_row, bool adds, float* c, int64_t c_row, const float* ahead = nullptr) {
    Vector sums[ROWS][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < COLUMNS; ++j) sums[r][j] = Vector{};
    for (int64_t d = 0; d < depth; ++d) {
        if (AHEAD) __builtin_prefetch(ahead + d * ROWS);
        Vector right[COLUMNS];
#pragma GCC unroll 8
        for (int j = 0; j < COLUMNS; ++j) right[j] = load(b + d * b_row + j * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const Vector left = splat(a[r * a_row + d * a_column]);
#pragma GCC unroll 8
            for (int j = 0; j < COLUMNS; ++j) sums[r][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < COLUMNS; ++j) {
            float* to = c + r * c_row + j * LANES;
            store(to, adds ? load(to) + sums[r][j] : sums[r][j]);
        }
}
