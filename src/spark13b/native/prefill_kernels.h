// What prefill.cpp computes itself between products, for each set of instructions: see each_level.h.

KERNEL static void narrow(const float* from, int64_t count, uint16_t* to) {
    for (int64_t i = 0; i < count; i += LANES) put(to + i, take(from + i, count - i), count - i);
}

KERNEL static void widen(const uint16_t* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += LANES) put(to + i, take(from + i, count - i), count - i);
}

// Rounded to bfloat16, in place.
KERNEL static void round(float* row, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES)
        put(row + i, (Vector)(narrowed_lanes(take(row + i, count - i)) << 16), count - i);
}

// Rotate one head's row in place: (x, y) halves with cos and sin (size), the first half of sin negative.
KERNEL static void turn(float* row, const float* cos, const float* sin, int64_t size) {
    const int64_t half = size / 2;
    for (int64_t d = 0; d < half; ++d) {
        const float x = row[d], y = row[d + half];
        row[d] = x * cos[d] + y * sin[d];
        row[d + half] = y * cos[d + half] + x * sin[d + half];
    }
}

static const Kernels kernels = {narrow, widen, round, turn};
