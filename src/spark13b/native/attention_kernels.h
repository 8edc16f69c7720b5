// Tiles of attention, compiled once for each set of instructions (each_level.h).
//
// A block of 64 queries stands across the vectors: scores are computed transposed, a row for each key, a column for each
// query. So keys and values are read as they lie, and maxima, exponentials and sums of a query are sums over rows: nothing
// is ever summed across a vector. Every product below has a left factor whose numbers are read one by one and spread over
// a vector, and a right factor whose rows are read by vectors.

#if LANES == 16
constexpr int kWide = 4;  // vectors of a row that a product holds in registers: 6 x 4 sums of 32 registers
#else
constexpr int kWide = 2;  // 6 x 2 of 16
#endif
constexpr int kTall = 6;

template <int COLUMNS, bool AHEAD>
KERNEL static inline void product_column(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                                         const float* b, int64_t b_row, bool adds, float* c, int64_t c_row,
                                         const float* ahead) {
    int64_t r = 0;
    for (; r + kTall <= rows; r += kTall)
        product_tile<kTall, COLUMNS, AHEAD>(depth, a + r * a_row, a_row, a_column, b, b_row, adds, c + r * c_row, c_row,
                                            ahead + r * depth);
    const float* left = a + r * a_row;
    float* to = c + r * c_row;
    switch (rows - r) {
        case 5: product_tile<5, COLUMNS>(depth, left, a_row, a_column, b, b_row, adds, to, c_row); break;
        case 4: product_tile<4, COLUMNS>(depth, left, a_row, a_column, b, b_row, adds, to, c_row); break;
        case 3: product_tile<3, COLUMNS>(depth, left, a_row, a_column, b, b_row, adds, to, c_row); break;
        case 2: product_tile<2, COLUMNS>(depth, left, a_row, a_column, b, b_row, adds, to, c_row); break;
        case 1: product_tile<1, COLUMNS>(depth, left, a_row, a_column, b, b_row, adds, to, c_row); break;
        default: break;
    }
}

// c (rows, columns) = a b, or c += a b; `columns` is a multiple of LANES, a[r * a_row + d * a_column]. Asks memory for as
// many numbers as a has from `ahead` on.
template <bool AHEAD = false>
KERNEL static void product(int64_t rows, int64_t depth, int64_t columns, const float* a, int64_t a_row,
                           int64_t a_column, const float* b, int64_t b_row, bool adds, float* c, int64_t c_row,
                           const float* ahead = nullptr) {
    int64_t j = 0;
    for (; j + kWide * LANES <= columns; j += kWide * LANES)
        product_column<kWide, AHEAD>(rows, depth, a, a_row, a_column, b + j, b_row, adds, c + j, c_row, ahead);
    switch ((columns - j) / LANES) {
#if LANES == 16
        case 3: product_column<3, AHEAD>(rows, depth, a, a_row, a_column, b + j, b_row, adds, c + j, c_row, ahead); break;
        case 2: product_column<2, AHEAD>(rows, depth, a, a_row, a_column, b + j, b_row, adds, c + j, c_row, ahead); break;
#endif
        case 1: product_column<1, AHEAD>(rows, depth, a, a_row, a_column, b + j, b_row, adds, c + j, c_row, ahead); break;
        default: break;
    }
}

// `count` <= 64 rows of `size` -> (size, 64), times `scale`; columns that have no row are 0.
KERNEL static void transposed(const float* from, int64_t row, int64_t count, int64_t size, float scale, float* to) {
    for (int64_t t = 0; t < kQueries; t += LANES) {
        int64_t d = 0;
        if (t + LANES <= count)
            for (; d + LANES <= size; d += LANES) {
                Vector square[LANES];
                for (int i = 0; i < LANES; ++i) square[i] = load(from + (t + i) * row + d) * scale;
                transpose(square);
                for (int i = 0; i < LANES; ++i) store(to + (d + i) * kQueries + t, square[i]);
            }
        for (; d < size; ++d)
            for (int64_t i = t; i < t + LANES; ++i) to[d * kQueries + i] = i < count ? from[i * row + d] * scale : 0.0f;
    }
}

// The other way round: (size, 64) -> `count` rows of `size`, each times its own factor.
KERNEL static void transposed_back(const float* from, const float* factors, int64_t count, int64_t size, float* to,
                                   int64_t row) {
    for (int64_t t = 0; t < count; t += LANES) {
        int64_t d = 0;
        if (t + LANES <= count)
            for (; d + LANES <= size; d += LANES) {
                Vector square[LANES];
                const Vector factor = load(factors + t);
                for (int i = 0; i < LANES; ++i) square[i] = load(from + (d + i) * kQueries + t) * factor;
                transpose(square);
                for (int i = 0; i < LANES; ++i) store(to + (t + i) * row + d, square[i]);
            }
        for (; d < size; ++d)
            for (int64_t i = t; i < std::min(t + LANES, count); ++i)
                to[i * row + d] = from[d * kQueries + i] * factors[i];
    }
}

// `count` <= 64 rows of `size`, times `scale` -> (64, width), with zeros behind them and below.
KERNEL static void padded(const float* from, int64_t row, int64_t count, int64_t size, float scale, int64_t width,
                          float* to) {
    for (int64_t t = 0; t < kQueries; ++t)
        for (int64_t d = 0; d < width; d += LANES) {
            Vector here = {};
            if (t < count && d < size)
                here = d + LANES <= size ? load(from + t * row + d) : load_some(from + t * row + d, size - d);
            store(to + t * width + d, here * scale);
        }
}

KERNEL static inline Integers numbers_from(int64_t first) {
    Integers numbers;
    for (int i = 0; i < LANES; ++i) numbers[i] = static_cast<int32_t>(first + i);
    return numbers;
}

// -1 in the lanes of those queries that see key j, else 0.
KERNEL static inline Integers seen(const Sight& sight, Integers queries, int64_t j) {
    // query >= j - position and query < j - position + window; both bounds are cut to the block, so that they fit
    const int64_t from = std::clamp<int64_t>(j - sight.position, 0, kQueries);
    const int64_t to = std::clamp<int64_t>(j - sight.position + sight.window, 0, kQueries);
    return (queries >= static_cast<int32_t>(from)) & (queries < static_cast<int32_t>(to));
}

// e^x for x <= 0: 2^n 2^r with |r| <= 1/2, the first terms of the series; an error of 2e-7 of the result.
KERNEL static inline Vector exp_below_zero(Vector x) {
    const Vector low = splat(LANES == 16 ? -1e4f : -87.0f);  // for the rest is rounded, too, when x is huge
    x = x < low ? low : x;
#if LANES == 16
    const Vector n = (Vector)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 8);
#else
    const Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: what is added there is rounded
#endif
    const Vector r = x * 1.44269504f - n;
    Vector p = splat(1.54035304e-4f);
    p = p * r + 1.33335581e-3f;
    p = p * r + 9.61812911e-3f;
    p = p * r + 5.55041087e-2f;
    p = p * r + 2.40226507e-1f;
    p = p * r + 6.93147181e-1f;
    p = p * r + 1.0f;
#if LANES == 16
    return (Vector)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    Vector scale;
    std::memcpy(&scale, &power, sizeof scale);
    return p * scale;
#endif
}

// A block of `count` <= 64 queries of one head, the first at `sight.position` -> rows of out, and log_sums if wanted.
// workspace: see kForward.
KERNEL static void forward(const float* q, int64_t q_row, int64_t count, const Sight& sight, int64_t size, float scale,
                           const float* k, int64_t k_row, const float* v, int64_t v_row, float* out, int64_t out_row,
                           float* log_sums, float* workspace) {
    float *queries = workspace, *sums = queries + size * kQueries, *scores = sums + size * kQueries;
    alignas(64) float most[kQueries], total[kQueries];
    transposed(q, q_row, count, size, scale, queries);
    for (int64_t t = 0; t < kQueries; ++t) most[t] = kNothing, total[t] = 0.0f;
    std::memset(sums, 0, size * kQueries * sizeof(float));
    const int64_t begin = sight.begin(), end = sight.end(count);
    // where keys and values lie row behind row, memory is asked for the values while scores are computed, and for the next keys
    // while those are used
    const auto product_of = k_row == size && v_row == size ? product<true> : product<false>;
    for (int64_t first = begin; first < end; first += kKeys) {
        const int64_t keys = std::min(kKeys, end - first);
        const bool whole = sight.all(count, first, keys);
        // the vectors of queries of which some see some of these keys
        const int64_t left = sight.left(first) / LANES * LANES;
        const int64_t right = (sight.right(first + keys) + LANES - 1) / LANES * LANES;
        product_of(keys, size, right - left, k + first * k_row, k_row, 1, queries + left, kQueries, false, scores + left,
                   kQueries, v + first * v_row);
        bool grew = false;
        alignas(64) float shrink[kQueries];
        for (int64_t t = left; t < right; t += LANES) {
            float* column = scores + t;
            const Vector old = load(most + t);
            Vector now = old, added = {};
            if (!whole) {
                const Integers numbers = numbers_from(t);
                for (int64_t j = 0; j < keys; ++j) {
                    float* at = column + j * kQueries;
                    store(at, seen(sight, numbers, first + j) ? load(at) : splat(kNothing));
                }
            }
            for (int64_t j = 0; j < keys; ++j) {
                const Vector score = load(column + j * kQueries);
                now = score > now ? score : now;
            }
            if (whole) {
                for (int64_t j = 0; j < keys; ++j) {
                    const Vector weight = exp_below_zero(load(column + j * kQueries) - now);
                    store(column + j * kQueries, weight);
                    added += weight;
                }
            } else {
                for (int64_t j = 0; j < keys; ++j) {
                    const Vector score = load(column + j * kQueries);
                    const Vector weight = score > kNothing ? exp_below_zero(score - now) : Vector{};
                    store(column + j * kQueries, weight);
                    added += weight;
                }
            }
            const Vector factor = exp_below_zero(old - now);
            store(most + t, now);
            store(shrink + t, factor);
            store(total + t, load(total + t) * factor + added);
            const Integers changed = factor != splat(1.0f);
            for (int i = 0; i < LANES; ++i) grew |= changed[i] != 0;
        }
        if (grew && first != begin)
            for (int64_t d = 0; d < size; ++d)
                for (int64_t t = left; t < right; t += LANES) {
                    float* at = sums + d * kQueries + t;
                    store(at, load(at) * load(shrink + t));
                }
        product_of(size, keys, right - left, v + first * v_row, 1, v_row, scores + left, kQueries, true, sums + left,
                   kQueries, k + (first + keys) * k_row);
    }
    for (int64_t t = 0; t < count; ++t) {
        if (log_sums) log_sums[t] = most[t] + std::log(total[t]);
        total[t] = 1.0f / total[t];
    }
    transposed_back(sums, total, count, size, out, out_row);
}

// A block of queries again, with the gradient of its out: dq is written; dk and dv, of all keys of the head and `width`
// numbers a row, are added to. With weights w = e^(score - log_sum): dv += w dout, dw = dout v^T,
// dscore = w (dw - sum(dout out)), dq = dscore k, dk += dscore q. workspace: see kBackward.
KERNEL static void backward(const float* q, int64_t q_row, int64_t count, const Sight& sight, int64_t size,
                            float scale, const float* k, int64_t k_row, const float* v, int64_t v_row,
                            const float* out, int64_t out_row, const float* log_sums, const float* dout,
                            int64_t dout_row, float* dq, int64_t dq_row, float* dk, float* dv, int64_t width,
                            float* workspace) {
    float *queries = workspace, *gradients = queries + size * kQueries, *sums = gradients + size * kQueries;
    float *query_rows = sums + size * kQueries, *gradient_rows = query_rows + width * kQueries;
    float *weights = gradient_rows + width * kQueries, *changes = weights + kKeys * kQueries;
    alignas(64) float logs[kQueries] = {}, delta[kQueries] = {};
    transposed(q, q_row, count, size, scale, queries);
    transposed(dout, dout_row, count, size, 1.0f, gradients);
    padded(q, q_row, count, size, scale, width, query_rows);
    padded(dout, dout_row, count, size, 1.0f, width, gradient_rows);
    for (int64_t t = 0; t < count; ++t) {
        Vector both = {};
        int64_t d = 0;
        for (; d + LANES <= size; d += LANES) both += load(out + t * out_row + d) * load(dout + t * dout_row + d);
        if (d < size) both += load_some(out + t * out_row + d, size - d) * load_some(dout + t * dout_row + d, size - d);
        delta[t] = sum_of(both);
        logs[t] = log_sums[t];
    }
    std::memset(sums, 0, size * kQueries * sizeof(float));
    const int64_t begin = sight.begin(), end = sight.end(count);
    for (int64_t first = begin; first < end; first += kKeys) {
        const int64_t keys = std::min(kKeys, end - first);
        const bool whole = count == kQueries && sight.all(count, first, keys);
        const int64_t left = sight.left(first) / LANES * LANES;
        const int64_t right = (sight.right(first + keys) + LANES - 1) / LANES * LANES, some = right - left;
        product(keys, size, some, k + first * k_row, k_row, 1, queries + left, kQueries, false, weights + left, kQueries);
        product(keys, size, some, v + first * v_row, v_row, 1, gradients + left, kQueries, false, changes + left,
                kQueries);
        for (int64_t t = left; t < right; t += LANES) {
            const Vector log_sum = load(logs + t), mean = load(delta + t);
            const Integers numbers = numbers_from(t), there = numbers < static_cast<int32_t>(count);
            for (int64_t j = 0; j < keys; ++j) {
                float *weight_at = weights + j * kQueries + t, *change_at = changes + j * kQueries + t;
                const Vector score = load(weight_at) - log_sum;
                Vector weight;
                if (whole)
                    weight = exp_below_zero(score);
                else  // a position behind the last query may see keys, too
                    weight = (seen(sight, numbers, first + j) & there) ? exp_below_zero(score) : Vector{};
                store(weight_at, weight);
                store(change_at, weight * (load(change_at) - mean));
            }
        }
        product(keys, some, width, weights + left, kQueries, 1, gradient_rows + left * width, width, true,
                dv + first * width, width);
        product(keys, some, width, changes + left, kQueries, 1, query_rows + left * width, width, true,
                dk + first * width, width);
        product(size, keys, some, k + first * k_row, 1, k_row, changes + left, kQueries, true, sums + left, kQueries);
    }
    for (float& factor : logs) factor = scale;
    transposed_back(sums, logs, count, size, dq, dq_row);
}

static const Kernels kernels = {forward, backward};
