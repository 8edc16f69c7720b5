// Panels of products, for each set of instructions: see each_level.h.
//
// A's panels are kTall rows, B's are kWide vectors of columns, both of kDepth numbers of depth or fewer.

#if LANES == 16
constexpr int kTall = 6, kWide = 4;  // 6 x 4 sums, 4 vectors of B and one number of A spread: 29 of 32 registers
#else
constexpr int kTall = 4, kWide = 3;  // 4 x 3, 3 and 1: 16 of 16
#endif

// `count` <= LANES rows of `depth` <= LANES numbers become columns, `to_row` apart; zeros beside them.
KERNEL static inline void transpose_some(const float* from, int64_t row, int64_t count, int64_t depth, float* to,
                                         int64_t to_row) {
    Vector square[LANES];
    for (int i = 0; i < LANES; ++i) square[i] = i < count ? take(from + i * row, depth) : Vector{};
    transpose(square);
    for (int i = 0; i < depth; ++i) store(to + i * to_row, square[i]);
}

// `rows` <= kTall rows of A that lie one behind the other -> a panel, with zeros below them.
KERNEL static inline void pack_rows(const float* a, int64_t row, int64_t rows, int64_t depth, float* to) {
    for (int64_t r = 0; r < kTall; ++r)
        if (r < rows)
            std::memcpy(to + r * kDepth, a + r * row, depth * sizeof(float));
        else
            std::memset(to + r * kDepth, 0, depth * sizeof(float));
}

// PANELS panels of rows that lie side by side, `column` numbers from one number of depth to the next.
template <int PANELS>
KERNEL static inline void pack_columns(const float* a, int64_t column, int64_t rows, int64_t depth, float* to) {
    for (int64_t d = 0; d < depth; ++d, a += column, to += kTall)
        for (int p = 0; p < PANELS; ++p) {
            float* panel = to + p * kTall * kDepth;
            if (rows == PANELS * kTall)
                std::memcpy(panel, a + p * kTall, kTall * sizeof(float));
            else
                for (int r = 0; r < kTall; ++r) panel[r] = p * kTall + r < rows ? a[p * kTall + r] : 0.0f;
        }
}

// Rows of A -> panels: where they lie one behind the other kTall rows of kDepth numbers, else for each number of depth kTall.
KERNEL static void pack_left(const float* a, Strides strides, int64_t rows, int64_t depth, float* to) {
    constexpr int64_t kSome = 8;  // panels whose lines are read once
    int64_t r = 0;
    if (strides.column != 1)
        for (; r + kSome * kTall <= rows; r += kSome * kTall)
            pack_columns<kSome>(a + r, strides.column, kSome * kTall, depth, to + r * kDepth);
    for (; r < rows; r += kTall) {
        const int64_t some = std::min<int64_t>(kTall, rows - r);
        if (strides.column == 1)
            pack_rows(a + r * strides.row, strides.row, some, depth, to + r * kDepth);
        else
            pack_columns<1>(a + r, strides.column, some, depth, to + r * kDepth);
    }
}

// `columns` <= kWide vectors of B -> a panel, with zeros beside them to the next whole vector.
KERNEL static void pack_right(const float* b, Strides strides, int64_t columns, int64_t depth, float* to) {
    const int64_t width = (columns + LANES - 1) / LANES * LANES;
    if (strides.column == 1) {
        for (int64_t d = 0; d < depth; ++d)
            for (int64_t j = 0; j < width; j += LANES) store(to + d * width + j, take(b + d * strides.row + j, columns - j));
        return;
    }
    for (int64_t j = 0; j < width; j += LANES)
        for (int64_t d = 0; d < depth; d += LANES)
            transpose_some(b + j * strides.column + d, strides.column, columns - j, std::min<int64_t>(LANES, depth - d),
                           to + d * width + j, width);
}

// Of A's panels rows are ROW numbers apart, and depths DEPTH.
template <int COLUMNS, int ROW, int DEPTH>
KERNEL static inline void multiply_panels(const float* left, int64_t rows, const float* right, int64_t columns,
                                          int64_t depth, const float* bias, bool adds, float* c, int64_t c_row) {
    constexpr int64_t kRow = COLUMNS * LANES;
    alignas(64) float aside[kTall * kRow];
    for (int64_t r = 0; r < rows; r += kTall, left += kTall * kDepth, c += kTall * c_row) {
        const int64_t some = std::min<int64_t>(kTall, rows - r);
        for (int64_t i = 0; i < some; ++i)
            for (int64_t j = 0; j < columns; j += 16)
                __builtin_prefetch(c + i * c_row + j, 1);
        if (some == kTall && columns == kRow && !bias) {
            product_tile<kTall, COLUMNS>(depth, left, ROW, DEPTH, right, kRow, adds, c, c_row);
            continue;
        }
        product_tile<kTall, COLUMNS>(depth, left, ROW, DEPTH, right, kRow, false, aside, kRow);
        for (int64_t i = 0; i < some; ++i)
            for (int64_t j = 0; j < columns; j += LANES) {
                float* to = c + i * c_row + j;
                const int64_t rest = columns - j;
                Vector sum = load(aside + i * kRow + j);
                if (bias) sum += take(bias + j, rest);
                if (adds) sum += take(to, rest);
                put(to, sum, rest);
            }
    }
}

// C (rows, columns) = left right, or += that.
template <int ROW, int DEPTH>
KERNEL static void multiply_some(const float* left, int64_t rows, const float* right, int64_t columns, int64_t depth,
                                 const float* bias, bool adds, float* c, int64_t c_row) {
    switch ((columns + LANES - 1) / LANES) {
        case 1: multiply_panels<1, ROW, DEPTH>(left, rows, right, columns, depth, bias, adds, c, c_row); break;
        case 2: multiply_panels<2, ROW, DEPTH>(left, rows, right, columns, depth, bias, adds, c, c_row); break;
#if LANES == 16
        case 3: multiply_panels<3, ROW, DEPTH>(left, rows, right, columns, depth, bias, adds, c, c_row); break;
#endif
        default: multiply_panels<kWide, ROW, DEPTH>(left, rows, right, columns, depth, bias, adds, c, c_row); break;
    }
}

static const Kernels kernels = {
    kTall, kWide * LANES, pack_left, pack_right, {multiply_some<1, kTall>, multiply_some<kDepth, 1>}};
