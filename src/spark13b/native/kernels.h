// The arithmetic of a decode step, for each set of instructions: see each_level.h.
//
// Every number is a sum in an order that depends on the lengths alone: not on the other texts of the batch, nor on who
// computes it. A dot product is one vector accumulator from left to right, then its lanes by halves; strips.h and
// whole_numbers.h have int8 and int4. Weights of bfloat16 and float16 are widened; inputs, products and sums are float32.

#include "stored.h"

// ROWS rows of W by TEXTS rows of x. Several at once, since one chain of additions waits 4 cycles for each.
template <class Stored, int ROWS, int TEXTS>
KERNEL static inline void dots(const Matrix& w, int64_t o, const float* x, int64_t in, const float* bias, bool adds,
                               float* y, int64_t y_stride) {
    Vector sums[ROWS][TEXTS] = {};
    Stored::template add<ROWS, TEXTS>(w, o, x, in, sums);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int t = 0; t < TEXTS; ++t) {
            float value = sum_of(sums[r][t]);
            if (bias) value += bias[o + r];
            float& out = y[t * y_stride + o + r];
            out = adds ? out + value : value;
        }
}

template <class Stored, int TEXTS>
KERNEL static inline void dots_of_rows(const Matrix& w, const float* x, int64_t in, const float* bias, bool adds,
                                       float* y, int64_t y_stride, int64_t begin, int64_t end) {
    constexpr int ROWS = Stored::rows(TEXTS);
    int64_t o = begin;
    for (; o + ROWS <= end; o += ROWS) dots<Stored, ROWS, TEXTS>(w, o, x, in, bias, adds, y, y_stride);
    for (; o < end; ++o) dots<Stored, 1, TEXTS>(w, o, x, in, bias, adds, y, y_stride);
}

// work(text, count, from, to) for the texts by eights and less, for outputs in pieces that stay in the second cache, of multiples
// of `least`: weights are read from memory once for all texts. `count` is a number by its type.
template <class Work>
KERNEL static inline void for_texts(const Matrix& w, int64_t texts, int64_t in, int64_t least, int64_t begin, int64_t end,
                                    const Work& work) {
    const int64_t some = std::max<int64_t>(1, (1 << 21) / (in * bits_of(w.type)) / least) * least;
    const int64_t piece = texts <= 8 ? end - begin : some;
    for (int64_t o = begin; o < end; o += piece) {
        const int64_t stop = std::min(end, o + piece);
        for (int64_t t = 0, now; t < texts; t += now) {
            now = texts - t >= 8 ? 8 : std::min<int64_t>(4, texts - t);  // more sizes would double the library
            switch (now) {
                case 1: work(t, std::integral_constant<int, 1>(), o, stop); break;
                case 2: work(t, std::integral_constant<int, 2>(), o, stop); break;
                case 3: work(t, std::integral_constant<int, 3>(), o, stop); break;
                case 4: work(t, std::integral_constant<int, 4>(), o, stop); break;
                default: work(t, std::integral_constant<int, 8>(), o, stop);
            }
        }
    }
}

#include "strips.h"
#if LEVEL >= 2 || (LEVEL == 1 && defined(SPARK13B_AVX_VNNI)) || (LEVEL == 0 && defined(SPARK13B_SDOT))
#include "whole_numbers.h"
#define OF_ROUNDED round_row, linear_of_rounded
#else
#define OF_ROUNDED nullptr, nullptr
#endif
#if LEVEL >= 2 && defined(SPARK13B_TILES)
#include "byte_tiles.h"
#define BY_TILES linear_by_tiles
#else
#define BY_TILES nullptr
#endif

template <class Stored>
KERNEL static void linear_of(const Matrix& w, const float* bias, const float* x, int64_t texts, int64_t in, bool adds,
                             float* y, int64_t y_stride, int64_t begin, int64_t end) {
    for_texts(w, texts, in, 8, begin, end, [&](int64_t t, auto count, int64_t from, int64_t to) KERNEL {
        dots_of_rows<Stored, decltype(count)::value>(w, x + t * in, in, bias, adds, y + t * y_stride, y_stride, from, to);
    });
}

// y = x W^T + b, or y += that, for the outputs `begin` to `end`: W (outputs, in), x (texts, in), y (texts, y_stride). Of int8 and
// int4 both are multiples of kStrip, or `end` is the last.
KERNEL static void linear(const Matrix& w, const float* bias, const float* x, int64_t texts, int64_t in, bool adds,
                          float* y, int64_t y_stride, int64_t begin, int64_t end) {
    const FloatRows rows = {x};
    switch (w.type) {
        case kFloat32: linear_of<StoredNumbers<float>>(w, bias, x, texts, in, adds, y, y_stride, begin, end); break;
        case kBfloat16: linear_of<StoredNumbers<uint16_t>>(w, bias, x, texts, in, adds, y, y_stride, begin, end); break;
        case kFloat16: linear_of<StoredNumbers<Float16>>(w, bias, x, texts, in, adds, y, y_stride, begin, end); break;
        case kInt8: linear_of_strips<QuadsInt8>(w, bias, rows, texts, in, adds, y, y_stride, begin, end); break;
        case kInt4: linear_of_strips<QuadsInt4>(w, bias, rows, texts, in, adds, y, y_stride, begin, end); break;
    }
}

// Row `which` of W (outputs, in) -> out (in).
KERNEL static void row(const Matrix& w, int64_t which, int64_t in, float* out) {
    switch (w.type) {
        case kFloat32: StoredNumbers<float>::row(w, which, in, out); break;
        case kBfloat16: StoredNumbers<uint16_t>::row(w, which, in, out); break;
        case kFloat16: StoredNumbers<Float16>::row(w, which, in, out); break;
        case kInt8: row_of_strip<QuadsInt8>(w, which, in, out); break;
        case kInt4: row_of_strip<QuadsInt4>(w, which, in, out); break;
    }
}

// The strip of int8 or int4 weights that begins with row `first` -> its rows, float32 or `narrow`, bfloat16.
KERNEL static void open_strip(const Matrix& w, int64_t first, int64_t in, bool narrow, void* out) {
    if (w.type == kInt8 && narrow) rows_of_strip<QuadsInt8>(w, first, in, static_cast<uint16_t*>(out));
    if (w.type == kInt8 && !narrow) rows_of_strip<QuadsInt8>(w, first, in, static_cast<float*>(out));
    if (w.type == kInt4 && narrow) rows_of_strip<QuadsInt4>(w, first, in, static_cast<uint16_t*>(out));
    if (w.type == kInt4 && !narrow) rows_of_strip<QuadsInt4>(w, first, in, static_cast<float*>(out));
}

// gate = gelu(gate) * value
KERNEL static void gated_gelu(float* gate, const float* value, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t left = count - i;
        const Vector z = take(gate + i, left), u = take(value + i, left);
        put(gate + i, z * sigmoid_of_gelu(z) * u, left);
    }
}

// One head of one text: q (size), scaled, over the first `count` slots of its rings -> out (size). `scores` has room for
// the slots and LANES more.
template <class Element>
KERNEL static void attend_of(const float* q, const Element* keys, const Element* values, int64_t count, int64_t size,
                             float* scores, float* out) {
    const Matrix rows = {keys, nullptr, kFloat32, 0, count};
    int64_t s = 0;
    for (; s + 4 <= count; s += 4)
        dots<StoredNumbers<Element>, 4, 1>(rows, s, q, size, nullptr, false, scores, 1);
    for (; s < count; ++s) dots<StoredNumbers<Element>, 1, 1>(rows, s, q, size, nullptr, false, scores, 1);
    float most = -std::numeric_limits<float>::infinity();
    for (s = 0; s < count; ++s) most = std::max(most, scores[s]);
    Vector sums = {};
    for (s = 0; s < count; s += LANES) {
        const Vector weights = exp_of(load(scores + s) - most);  // what lies behind the scores is cleared next
        store(scores + s, weights);
        if (s + LANES > count) std::memset(scores + count, 0, (s + LANES - count) * sizeof(float));
        sums += load(scores + s);
    }
    const float share = 1.0f / sum_of(sums);
    int64_t d = 0;
    for (; d + 4 * LANES <= size; d += 4 * LANES) {
        Vector parts[4] = {};
        for (s = 0; s < count; ++s)
            for (int j = 0; j < 4; ++j) parts[j] += scores[s] * load(values + s * size + d + j * LANES);
        for (int j = 0; j < 4; ++j) store(out + d + j * LANES, parts[j] * share);
    }
    for (; d + LANES <= size; d += LANES) {
        Vector part = {};
        for (s = 0; s < count; ++s) part += scores[s] * load(values + s * size + d);
        store(out + d, part * share);
    }
    for (; d < size; ++d) {
        float part = 0.0f;
        for (s = 0; s < count; ++s) part += scores[s] * widened(values[s * size + d]);
        out[d] = part * share;
    }
}

// The same for rings of float32 or bfloat16.
KERNEL static void attend(const float* q, const void* keys, const void* values, int32_t type, int64_t count, int64_t size,
                          float* scores, float* out) {
    if (type == kBfloat16)
        attend_of(q, static_cast<const uint16_t*>(keys), static_cast<const uint16_t*>(values), count, size, scores, out);
    else
        attend_of(q, static_cast<const float*>(keys), static_cast<const float*>(values), count, size, scores, out);
}

// (x - mean) / sqrt(variance + epsilon) * gamma + beta, one row.
KERNEL static void layer_norm(const float* x, const float* gamma, const float* beta, int64_t size, float epsilon,
                              float* out) {
    float mean, factor;
    statistics(x, size, epsilon, mean, factor);
    for (int64_t i = 0; i < size; ++i) out[i] = (x[i] - mean) * factor * gamma[i] + beta[i];
}

static const Kernels kernels = {linear, row, open_strip, gated_gelu, attend, layer_norm, OF_ROUNDED, BY_TILES};

#undef OF_ROUNDED
#undef BY_TILES
