// Vectors of LANES floats, for each set of instructions: see each_level.h.

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

KERNEL static inline Vector splat(float value) { return value - Vector{}; }

KERNEL static inline Vector load(const float* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// The first `count` < LANES numbers, then zeros.
KERNEL static inline Vector load_some(const float* from, int64_t count) {
    float all[LANES] = {};
    for (int64_t i = 0; i < count; ++i) all[i] = from[i];
    return load(all);
}

// bfloat16 -> float32, exact: the upper half of each lane.
KERNEL static inline Vector load(const uint16_t* from) {
    Halves v;
    std::memcpy(&v, from, sizeof v);
    const Integers wide = __builtin_convertvector(v, Integers) << 16;
    Vector all;
    std::memcpy(&all, &wide, sizeof all);
    return all;
}

KERNEL static inline float widened(uint16_t from) {
    const uint32_t wide = static_cast<uint32_t>(from) << 16;
    float one;
    std::memcpy(&one, &wide, sizeof one);
    return one;
}

KERNEL static inline Vector load_some(const uint16_t* from, int64_t count) {
    float all[LANES] = {};
    for (int64_t i = 0; i < count; ++i) all[i] = widened(from[i]);
    return load(all);
}

KERNEL static inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

KERNEL static inline float sum_of(Vector v) {
    float lanes[LANES];
    store(lanes, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
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
