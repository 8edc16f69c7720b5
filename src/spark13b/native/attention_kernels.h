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
constexpr int64_t kVectors = kQueries / LANES;  // of one row of scores

// ROWS x COLUMNS vectors of c = a b, or c += a b.
template <int ROWS, int COLUMNS>
KERNEL static inline void product_tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
                                       int64_t b_row, bool adds, float* c, int64_t c_row) {
    Vector sums[ROWS][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < COLUMNS; ++j) sums[r][j] = Vector{};
    for (int64_t d = 0; d < depth; ++d) {
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

template <int COLUMNS>
KERNEL static inline void product_column(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                                         const float* b, int64_t b_row, bool adds, float* c, int64_t c_row) {
    int64_t r = 0;
    for (; r + kTall <= rows; r += kTall)
        product_tile<kTall, COLUMNS>(depth, a + r * a_row, a_row, a_column, b, b_row, adds, c + r * c_row, c_row);
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

// c (rows, columns) = a b, or c += a b; `columns` is a multiple of LANES, a[r * a_row + d * a_column].
KERNEL static void product(int64_t rows, int64_t depth, int64_t columns, const float* a, int64_t a_row,
                           int64_t a_column, const float* b, int64_t b_row, bool adds, float* c, int64_t c_row) {
    int64_t j = 0;
    for (; j + kWide * LANES <= columns; j += kWide * LANES)
        product_column<kWide>(rows, depth, a, a_row, a_column, b + j, b_row, adds, c + j, c_row);
    for (; j < columns; j += LANES)
        product_column<1>(rows, depth, a, a_row, a_column, b + j, b_row, adds, c + j, c_row);
}

// `count` <= 64 rows of `size` -> (size, 64), times `scale`; columns that have no row are 0.
KERNEL static void transposed(const float* from, int64_t row, int64_t count, int64_t size, float scale, float* to) {
    for (int64_t d = 0; d < size; ++d) {
        float* line = to + d * kQueries;
        for (int64_t t = 0; t < count; ++t) line[t] = from[t * row + d] * scale;
        for (int64_t t = count; t < kQueries; ++t) line[t] = 0.0f;
    }
}

// The other way round: (size, 64) -> `count` rows of `size`, each times its own factor, or all times `scale`.
KERNEL static void transposed_back(const float* from, const float* factors, float scale, int64_t count, int64_t size,
                                   float* to, int64_t row) {
    for (int64_t t = 0; t < count; ++t) {
        const float factor = factors ? factors[t] : scale;
        for (int64_t d = 0; d < size; ++d) to[t * row + d] = from[d * kQueries + t] * factor;
    }
}

// `count` <= 64 rows of `size`, times `scale` -> (64, width), with zeros behind them and below.
KERNEL static void padded(const float* from, int64_t row, int64_t count, int64_t size, float scale, int64_t width,
                          float* to) {
    std::memset(to, 0, kQueries * width * sizeof(float));
    for (int64_t t = 0; t < count; ++t)
        for (int64_t d = 0; d < size; ++d) to[t * width + d] = from[t * row + d] * scale;
}

// -1 in the lanes of the queries `t` .. t + LANES - 1 that see key j, else 0.
KERNEL static inline Integers seen(const Sight& sight, int64_t t, int64_t j) {
    int32_t numbers[LANES];
    for (int i = 0; i < LANES; ++i) numbers[i] = static_cast<int32_t>(t + i);
    Integers query;
    std::memcpy(&query, numbers, sizeof query);
    // query >= j - position and query < j - position + window; both bounds are cut to the block, so that they fit
    const int64_t from = std::max<int64_t>(j - sight.position, 0);
    const int64_t to = std::min<int64_t>(j - sight.position + sight.window, kQueries);
    return (query >= static_cast<int32_t>(std::min(from, kQueries))) &
           (query < static_cast<int32_t>(std::max<int64_t>(to, 0)));
}

// e^x for x <= 0, without `exp_of`'s guard against large ones: 3e-38 for very negative ones.
KERNEL static inline Vector exp_below_zero(Vector x) {
    const Vector low = splat(-87.0f);
    x = x < low ? low : x;
    const Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
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
    for (int64_t first = begin; first < end; first += kKeys) {
        const int64_t keys = std::min(kKeys, end - first);
        const bool whole = sight.all(count, first, keys);
        product(keys, size, kQueries, k + first * k_row, k_row, 1, queries, kQueries, false, scores, kQueries);
        bool grew = false;
        alignas(64) float shrink[kQueries];
        for (int64_t part = 0; part < kVectors; ++part) {
            float* column = scores + part * LANES;
            const Vector old = load(most + part * LANES);
            Vector now = old;
            if (!whole)
                for (int64_t j = 0; j < keys; ++j) {
                    const Vector score = load(column + j * kQueries);
                    store(column + j * kQueries, seen(sight, part * LANES, first + j) ? score : splat(kNothing));
                }
            for (int64_t j = 0; j < keys; ++j) {
                const Vector score = load(column + j * kQueries);
                now = score > now ? score : now;
            }
            store(most + part * LANES, now);
            store(shrink + part * LANES, exp_below_zero(old - now));
            for (int i = 0; i < LANES; ++i) grew |= shrink[part * LANES + i] != 1.0f;
            Vector added = {};
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
            store(total + part * LANES, load(total + part * LANES) * load(shrink + part * LANES) + added);
        }
        if (grew && first != begin)
            for (int64_t d = 0; d < size; ++d)
                for (int64_t part = 0; part < kVectors; ++part) {
                    float* at = sums + d * kQueries + part * LANES;
                    store(at, load(at) * load(shrink + part * LANES));
                }
        product(size, keys, kQueries, v + first * v_row, 1, v_row, scores, kQueries, true, sums, kQueries);
    }
    for (int64_t t = 0; t < count; ++t) {
        if (log_sums) log_sums[t] = most[t] + std::log(total[t]);
        total[t] = 1.0f / total[t];
    }
    transposed_back(sums, total, 1.0f, count, size, out, out_row);
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
        product(keys, size, kQueries, k + first * k_row, k_row, 1, queries, kQueries, false, weights, kQueries);
        product(keys, size, kQueries, v + first * v_row, v_row, 1, gradients, kQueries, false, changes, kQueries);
        for (int64_t part = 0; part < kVectors; ++part) {
            const Vector log_sum = load(logs + part * LANES), mean = load(delta + part * LANES);
            const int64_t there = count - part * LANES;  // queries of this vector that exist
            for (int64_t j = 0; j < keys; ++j) {
                float *weight_at = weights + j * kQueries + part * LANES;
                float *change_at = changes + j * kQueries + part * LANES;
                Vector weight = exp_below_zero(load(weight_at) - log_sum);
                if (!whole) weight = seen(sight, part * LANES, first + j) ? weight : Vector{};
                store(weight_at, weight);
                store(change_at, weight * (load(change_at) - mean));
                if (there < LANES)  // a position behind the last query may see keys, too
                    for (int64_t i = std::max<int64_t>(there, 0); i < LANES; ++i) weight_at[i] = change_at[i] = 0.0f;
            }
        }
        product(keys, kQueries, width, weights, kQueries, 1, gradient_rows, width, true, dv + first * width, width);
        product(keys, kQueries, width, changes, kQueries, 1, query_rows, width, true, dk + first * width, width);
        product(size, keys, kQueries, k + first * k_row, 1, k_row, changes, kQueries, true, sums, kQueries);
    }
    transposed_back(sums, nullptr, scale, count, size, dq, dq_row);
}

static const Kernels kernels = {forward, backward};
