// AdamW and the gradients' norm, for each set of instructions: see each_level.h.

KERNEL static inline Vector root(Vector v) {
#if LANES == 16
    return (Vector)_mm512_sqrt_ps((__m512)v);
#elif LANES == 8
    return (Vector)_mm256_sqrt_ps((__m256)v);
#elif defined(__x86_64__)
    return (Vector)_mm_sqrt_ps((__m128)v);
#else
    for (int i = 0; i < LANES; ++i) v[i] = std::sqrt(v[i]);
    return v;
#endif
}

// The sum of squares; vectors in float32, over at most some thousand numbers.
KERNEL static float squares(const float* from, int64_t count) {
    Vector sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int j = 0; j < 4; ++j) {
            const Vector here = load(from + i + j * LANES);
            sums[j] += here * here;
        }
    for (; i < count; i += LANES) {
        const Vector here = take(from + i, count - i);
        sums[0] += here * here;
    }
    return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// AdamW of `count` numbers: see update_weights.
KERNEL static void adam(float* p, float* m, float* v, const float* gradient, int64_t count, const AdamNumbers& numbers,
                        float decay) {
    const float kept = 1.0f - numbers.rate * decay, beta1 = numbers.beta1, beta2 = numbers.beta2;
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t left = count - i;
        const Vector g = take(gradient + i, left) * numbers.factor;
        const Vector new_m = take(m + i, left) * beta1 + g * (1.0f - beta1);
        const Vector new_v = take(v + i, left) * beta2 + g * g * (1.0f - beta2);
        put(m + i, new_m, left);
        put(v + i, new_v, left);
        put(p + i, take(p + i, left) * kept - numbers.rate * new_m / (root(new_v) + numbers.epsilon), left);
    }
}

static const Kernels kernels = {squares, adam};
