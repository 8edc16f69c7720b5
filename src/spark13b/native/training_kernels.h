// What a training step computes row by row between its products, for each set of instructions: see each_level.h. A
// `Number` is float or, in its upper half, bfloat16; everything is computed in float32.

template <class From, class Number>
KERNEL static void convert(const From* from, int64_t count, float factor, Number* to) {
    for (int64_t i = 0; i < count; i += LANES) put(to + i, take(from + i, count - i) * factor, count - i);
}

// Layer norm of rows (rows, width).
template <class Number>
KERNEL static void norm(const float* x, int64_t rows, int64_t width, const float* gamma, const float* beta,
                        float epsilon, Number* out) {
    for (int64_t r = 0; r < rows; ++r, x += width, out += width) {
        float mean, scale;
        statistics(x, width, epsilon, mean, scale);
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i;
            put(out + i, (take(x + i, left) - mean) * scale * take(gamma + i, left) + take(beta + i, left), left);
        }
    }
}

// Its gradients: with n = (x - mean) scale and g = dh gamma, dx += scale (g - mean(g) - n mean(g n)), dgamma += dh n,
// dbeta += dh; these two where they are not null.
KERNEL static void norm_gradient(const float* x, const float* dh, int64_t rows, int64_t width, const float* gamma,
                                 float epsilon, float* dx, float* dgamma, float* dbeta) {
    for (int64_t r = 0; r < rows; ++r, x += width, dh += width, dx += width) {
        float mean, scale;
        statistics(x, width, epsilon, mean, scale);
        Vector sums = {}, products = {};
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i;
            const Vector change = take(dh + i, left), normal = (take(x + i, left) - mean) * scale;
            const Vector g = change * take(gamma + i, left);
            sums += g;
            products += g * normal;
            if (!dgamma) continue;
            put(dgamma + i, take(dgamma + i, left) + change * normal, left);
            put(dbeta + i, take(dbeta + i, left) + change, left);
        }
        const float mean_g = sum_of(sums) / width, mean_gn = sum_of(products) / width;
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i;
            const Vector normal = (take(x + i, left) - mean) * scale, g = take(dh + i, left) * take(gamma + i, left);
            put(dx + i, take(dx + i, left) + scale * (g - mean_g - normal * mean_gn), left);
        }
    }
}

// Rotate the heads of one row in place; `back` undoes it. The first half of sin is negative.
KERNEL static void turn(float* row, int64_t heads, int64_t size, const float* cos, const float* sin, bool back) {
    const int64_t half = size / 2;
    const float sign = back ? -1.0f : 1.0f;
    for (int64_t h = 0; h < heads; ++h, row += size)
        for (int64_t d = 0; d < half; d += LANES) {
            const int64_t left = half - d;
            const Vector x = take(row + d, left), y = take(row + half + d, left);
            const Vector first = x * take(cos + d, left) + y * (take(sin + d, left) * sign);
            const Vector second = y * take(cos + half + d, left) + x * (take(sin + half + d, left) * sign);
            put(row + d, first, left);
            put(row + half + d, second, left);
        }
}

// out = gelu(gate) up
template <class Number>
KERNEL static void gated(const Number* gate, const Number* up, int64_t count, Number* out) {
    for (int64_t i = 0; i < count; i += LANES) {
        const Vector z = take(gate + i, count - i);
        put(out + i, z * sigmoid_of_gelu(z) * take(up + i, count - i), count - i);
    }
}

// The gradient of `out` in `change` becomes that of gate; that of up goes to `up_change`, `out` is computed again, and the
// columns of both gradients are added to the sums, where these are not null.
template <class Number>
KERNEL static void gated_gradient(const Number* gate, const Number* up, int64_t rows, int64_t width, Number* change,
                                  Number* up_change, Number* out, float* sums, float* up_sums) {
    for (int64_t r = 0; r < rows; ++r, gate += width, up += width, change += width, up_change += width, out += width)
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i;
            const Vector z = take(gate + i, left), u = take(up + i, left), d = take(change + i, left);
            const Vector s = sigmoid_of_gelu(z), g = z * s;
            const Vector slope = s + g * (1.0f - s) * (kGelu + 3.0f * kGeluCube * (z * z));
            const Vector of_gate = d * u * slope, of_up = d * g;
            put(out + i, g * u, left);
            put(change + i, of_gate, left);
            put(up_change + i, of_up, left);
            if (!sums) continue;
            put(sums + i, take(sums + i, left) + of_gate, left);
            put(up_sums + i, take(up_sums + i, left) + of_up, left);
        }
}

KERNEL static inline Integers mixed_lanes(Integers bits) {
    bits = (Integers)((Naturals)(bits ^ (bits >> 16)) * kMixFactor);
    return bits ^ (bits >> 15);
}

// to = from by the mask, or with ADDS to += that: rows (rows, width) from row `first` of the batch on.
template <bool ADDS, class From, class Number>
KERNEL static void drop(const From* from, int64_t first, int64_t rows, int64_t width, const Mask& mask, Number* to) {
    uint32_t lanes[LANES];
    for (int i = 0; i < LANES; ++i) lanes[i] = i;
    Naturals begin;
    std::memcpy(&begin, lanes, sizeof begin);
    for (int64_t r = 0; r < rows; ++r, from += width, to += width) {
        const uint32_t row = mixed((static_cast<uint32_t>(first + r) + mask.first_row) * kRowFactor + mask.place);
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i;
            const Naturals columns = (begin + static_cast<uint32_t>(i)) * kColumnFactor;
            const Integers kept = mixed_lanes((Integers)(columns ^ row)) >= mask.threshold;
            Vector x = take(from + i, left) * (kept ? splat(mask.scale) : Vector{});
            if (ADDS) x += take(to + i, left);
            put(to + i, x, left);
        }
    }
}

// Add rows (rows, width) to one row.
KERNEL static void add_rows(const float* from, int64_t rows, int64_t width, int64_t stride, float* sums) {
    for (int64_t i = 0; i < width; i += LANES) {
        Vector total = take(sums + i, width - i);
        for (int64_t r = 0; r < rows; ++r) total += take(from + r * stride + i, width - i);
        put(sums + i, total, width - i);
    }
}

// One row of logits -> the negative log likelihood of its target; `hit` is 1 where no logit is above the target's, else 0.
// With `change`, which may be where the logits are, their gradient: weight (softmax - 1 at the target).
template <class Number>
KERNEL static float score(float* logits, int64_t width, int64_t target, float weight, float* hit,
                          Number* change) {
    Vector mosts = splat(logits[0]);
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Vector here = load(logits + i);
        mosts = here > mosts ? here : mosts;
    }
    float lanes[LANES];
    store(lanes, mosts);
    float most = *std::max_element(lanes, lanes + LANES);
    for (; i < width; ++i) most = std::max(most, logits[i]);
    const float own = logits[target] - most;
    *hit = own >= 0.0f;
    Vector sums = {};
    for (i = 0; i < width; i += LANES) {
        const int64_t left = width - i;
        const Vector share = exp_of(take(logits + i, left) - most);
        put(logits + i, share, left);
        sums += take(logits + i, left);
    }
    const float total = sum_of(sums);
    if (change) {
        const float own_share = std::exp(own) / total, factor = weight / total;
        for (i = 0; i < width; i += LANES) put(change + i, take(logits + i, width - i) * factor, width - i);
        const Vector at_target = splat(weight * (own_share - 1.0f));
        put(change + target, at_target, 1);
    }
    return std::log(total) - own;
}

// The table's functions get typed numbers as void.
template <class From, class Number>
KERNEL static void convert_to(const void* from, int64_t count, float factor, void* to) {
    convert(static_cast<const From*>(from), count, factor, static_cast<Number*>(to));
}

template <class Number>
KERNEL static void norm_to(const float* x, int64_t rows, int64_t width, const float* gamma, const float* beta,
                           float epsilon, void* out) {
    norm(x, rows, width, gamma, beta, epsilon, static_cast<Number*>(out));
}

template <class Number>
KERNEL static void gated_to(const void* gate, const void* up, int64_t count, void* out) {
    gated(static_cast<const Number*>(gate), static_cast<const Number*>(up), count, static_cast<Number*>(out));
}

template <class Number>
KERNEL static void gated_gradient_to(const void* gate, const void* up, int64_t rows, int64_t width, void* change,
                                     void* up_change, void* out, float* sums, float* up_sums) {
    gated_gradient(static_cast<const Number*>(gate), static_cast<const Number*>(up), rows, width,
                   static_cast<Number*>(change), static_cast<Number*>(up_change), static_cast<Number*>(out), sums,
                   up_sums);
}

template <class Number>
KERNEL static float score_to(float* logits, int64_t width, int64_t target, float weight, float* hit,
                      bool wants_change) {
    return score(logits, width, target, weight, hit, wants_change ? reinterpret_cast<Number*>(logits) : nullptr);
}

template <bool ADDS, class From, class Number>
KERNEL static void drop_to(const void* from, int64_t first, int64_t rows, int64_t width, const Mask& mask, void* to) {
    drop<ADDS>(static_cast<const From*>(from), first, rows, width, mask, static_cast<Number*>(to));
}

static const Kernels kernels = {
    {{convert_to<float, float>, convert_to<float, uint16_t>},
     {convert_to<uint16_t, float>, convert_to<uint16_t, uint16_t>}},
    {norm_to<float>, norm_to<uint16_t>},
    norm_gradient,
    turn,
    {gated_to<float>, gated_to<uint16_t>},
    {gated_gradient_to<float>, gated_gradient_to<uint16_t>},
    add_rows,
    {drop_to<false, float, float>, drop_to<false, uint16_t, uint16_t>},
    {drop_to<true, float, float>, drop_to<true, float, uint16_t>},
    {score_to<float>, score_to<uint16_t>},
};
