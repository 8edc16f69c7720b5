// The arithmetic of a decode step, for each set of instructions: see each_level.h.
//
// Every number is a sum in an order that depends on the lengths alone: not on the other texts of the batch, nor on who
// computes it. A dot product is one vector accumulator from left to right, then its lanes by halves. Weights of any type
// are widened to float32; inputs, products and sums are float32.

// ROWS rows of W by TEXTS rows of x. Several at once, since one chain of additions waits 4 cycles for each.
template <int ROWS, int TEXTS, class Element>
KERNEL static inline void dots(const Element* w, const float* x, int64_t in, const float* bias, bool adds, float* y,
                               int64_t y_stride) {
    Vector sums[ROWS][TEXTS] = {};
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) {
        Vector weights[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            weights[r] = load(w + r * in + i);
            // With many texts a row takes longer than the processor looks ahead by itself: ask for the next rows
            if (TEXTS > 2) __builtin_prefetch(w + (r + ROWS) * in + i);
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
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int t = 0; t < TEXTS; ++t) {
            float value = sum_of(sums[r][t]);
            if (bias) value += bias[r];
            float& out = y[t * y_stride + r];
            out = adds ? out + value : value;
        }
}

// As many accumulators as registers hold: 32 with AVX-512, else 16.
template <int TEXTS, class Element>
KERNEL static inline void dots_of_rows(const Element* w, const float* x, int64_t in, const float* bias, bool adds,
                                       float* y, int64_t y_stride, int64_t begin, int64_t end) {
    constexpr int ROWS = TEXTS <= 2 ? 4 : (LANES == 16 || TEXTS <= 4) ? 2 : 1;
    int64_t o = begin;
    for (; o + ROWS <= end; o += ROWS)
        dots<ROWS, TEXTS>(w + o * in, x, in, bias ? bias + o : nullptr, adds, y + o, y_stride);
    for (; o < end; ++o) dots<1, TEXTS>(w + o * in, x, in, bias ? bias + o : nullptr, adds, y + o, y_stride);
}

// Weights are read from memory once for all texts: in pieces that stay in the second cache.
template <class Element>
KERNEL static void linear_of(const Element* w, const float* bias, const float* x, int64_t texts, int64_t in, bool adds,
                             float* y, int64_t y_stride, int64_t begin, int64_t end) {
    const int64_t piece = texts <= 8 ? end - begin : std::max<int64_t>(8, (1 << 16) / in);
    for (int64_t o = begin; o < end; o += piece) {
        const int64_t stop = std::min(end, o + piece);
        for (int64_t t = 0; t < texts; t += 8) {
            const float* from = x + t * in;
            float* to = y + t * y_stride;
            switch (std::min<int64_t>(8, texts - t)) {
                case 1: dots_of_rows<1>(w, from, in, bias, adds, to, y_stride, o, stop); break;
                case 2: dots_of_rows<2>(w, from, in, bias, adds, to, y_stride, o, stop); break;
                case 3: dots_of_rows<3>(w, from, in, bias, adds, to, y_stride, o, stop); break;
                case 4: dots_of_rows<4>(w, from, in, bias, adds, to, y_stride, o, stop); break;
                case 5: dots_of_rows<5>(w, from, in, bias, adds, to, y_stride, o, stop); break;
                case 6: dots_of_rows<6>(w, from, in, bias, adds, to, y_stride, o, stop); break;
                case 7: dots_of_rows<7>(w, from, in, bias, adds, to, y_stride, o, stop); break;
                default: dots_of_rows<8>(w, from, in, bias, adds, to, y_stride, o, stop);
            }
        }
    }
}

// y = x W^T + b, or y += that, for the outputs `begin` to `end`: W (outputs, in), x (texts, in), y (texts, y_stride).
KERNEL static void linear(const Matrix& w, const float* bias, const float* x, int64_t texts, int64_t in, bool adds,
                          float* y, int64_t y_stride, int64_t begin, int64_t end) {
    if (w.type == kBfloat16)
        linear_of(static_cast<const uint16_t*>(w.data), bias, x, texts, in, adds, y, y_stride, begin, end);
    else
        linear_of(static_cast<const float*>(w.data), bias, x, texts, in, adds, y, y_stride, begin, end);
}

// Row `which` of W (outputs, in) -> out (in).
KERNEL static void row(const Matrix& w, int64_t which, int64_t in, float* out) {
    if (w.type == kBfloat16)
        for (int64_t i = 0; i < in; ++i) out[i] = widened(static_cast<const uint16_t*>(w.data)[which * in + i]);
    else
        std::memcpy(out, static_cast<const float*>(w.data) + which * in, in * sizeof(float));
}

// gate = gelu(gate) * value, with GELU's tanh form written by the sigmoid: z / (1 + e^(-2u)).
KERNEL static void gated_gelu(float* gate, const float* value, int64_t count) {
    const float scale = 1.5957691216057308f;  // 2 sqrt(2 / pi)
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t left = std::min<int64_t>(LANES, count - i);
        const Vector z = left == LANES ? load(gate + i) : load_some(gate + i, left);
        const Vector u = left == LANES ? load(value + i) : load_some(value + i, left);
        const Vector y = z / (1.0f + exp_of(-z * (scale + (0.044715f * scale) * (z * z)))) * u;
        float all[LANES];
        store(all, y);
        std::memcpy(gate + i, all, left * sizeof(float));
    }
}

// One head of one text: q (size), scaled, over the first `count` slots of its rings -> out (size). `scores` has room for
// the slots and LANES more.
KERNEL static void attend(const float* q, const float* keys, const float* values, int64_t count, int64_t size,
                          float* scores, float* out) {
    float most = -std::numeric_limits<float>::infinity();
    for (int64_t s = 0; s < count; ++s) {
        dots<1, 1>(keys + s * size, q, size, nullptr, false, scores + s, 1);
        most = std::max(most, scores[s]);
    }
    Vector sums = {};
    for (int64_t s = 0; s < count; s += LANES) {
        const Vector weights = exp_of(load(scores + s) - most);  // what lies behind the scores is cleared next
        store(scores + s, weights);
        if (s + LANES > count) std::memset(scores + count, 0, (s + LANES - count) * sizeof(float));
        sums += load(scores + s);
    }
    const float share = 1.0f / sum_of(sums);
    int64_t d = 0;
    for (; d + 4 * LANES <= size; d += 4 * LANES) {
        Vector parts[4] = {};
        for (int64_t s = 0; s < count; ++s)
            for (int j = 0; j < 4; ++j) parts[j] += scores[s] * load(values + s * size + d + j * LANES);
        for (int j = 0; j < 4; ++j) store(out + d + j * LANES, parts[j] * share);
    }
    for (; d + LANES <= size; d += LANES) {
        Vector part = {};
        for (int64_t s = 0; s < count; ++s) part += scores[s] * load(values + s * size + d);
        store(out + d, part * share);
    }
    for (; d < size; ++d) {
        float part = 0.0f;
        for (int64_t s = 0; s < count; ++s) part += scores[s] * values[s * size + d];
        out[d] = part * share;
    }
}

// (x - mean) / sqrt(variance + epsilon) * gamma + beta, one row.
KERNEL static void layer_norm(const float* x, const float* gamma, const float* beta, int64_t size, float epsilon,
                              float* out) {
    Vector sums = {};
    for (int64_t i = 0; i < size; i += LANES)
        sums += i + LANES <= size ? load(x + i) : load_some(x + i, size - i);
    const float mean = sum_of(sums) / size;
    Vector squares = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        const Vector off = load(x + i) - mean;
        squares += off * off;
    }
    float rest = 0.0f;
    for (; i < size; ++i) rest += (x[i] - mean) * (x[i] - mean);
    const float factor = 1.0f / std::sqrt((sum_of(squares) + rest) / size + epsilon);
    for (i = 0; i < size; ++i) out[i] = (x[i] - mean) * factor * gamma[i] + beta[i];
}

static const Kernels kernels = {linear, row, gated_gelu, attend, layer_norm};
