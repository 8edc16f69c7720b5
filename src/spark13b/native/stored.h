// How weights of float32, bfloat16 and float16 are read, for each set of instructions: see each_level.h. Part of kernels.h.
//
// `add` adds, for ROWS rows of W from row `o` on and TEXTS rows of x, all products of a row to one vector of sums each, and
// asks the memory for the ROWS rows that come next: short rows are beyond what processors look ahead by themselves.

// `rows` of texts: how many rows at once, as many sums as registers hold (32 with AVX-512, else 16).
static constexpr int usual_rows(int texts) { return texts <= 2 ? 4 : LANES == 16 || texts <= 4 ? 2 : 1; }

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
        for (int64_t i = 0; i < in; i += LANES) put(out + i, take(w + i, in - i), in - i);
    }
};
