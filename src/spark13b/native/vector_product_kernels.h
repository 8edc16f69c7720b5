// Panels of products, for each set of instructions: see each_level.h.
//
// A's panels are kTall rows, B's are kWide vectors of columns, both of kDepth numbers of depth or fewer.

#if LANES == 16
constexpr int kTall = 6, kWide = 4;  // 6 x 4 sums, 4 vectors of B and one number of A spread: 29 of 32 registers
#else
constexpr int kTall = 4, kWide = 3;  // 4 x 3, 3 and 1: 16 of 16
#endif

// `count` <= LANES rows of `depth` <= LANES numbers become columns, `to_row` apart; zeros beside them.
template <class Number>
KERNEL static inline void transpose_some(const Number* from, int64_t row, int64_t count, int64_t depth, float* to,
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
KERNEL static inline void pack_columns(const float* a, int64_t column, int64_t rows, int64_t depth, int64_t panel,
                                       float* to) {
    for (int64_t d = 0; d < depth; ++d, a += column, to += kTall)
        for (int p = 0; p < PANELS; ++p) {
            float* here = to + p * panel;
            if (rows == PANELS * kTall)
                std::memcpy(here, a + p * kTall, kTall * sizeof(float));
            else
                for (int r = 0; r < kTall; ++r) here[r] = p * kTall + r < rows ? a[p * kTall + r] : 0.0f;
        }
}

// Rows of A -> panels, `panel` numbers apart: where they lie one behind the other kTall rows of kDepth numbers, else for
// each number of depth kTall.
KERNEL static void pack_left(const float* a, Strides strides, int64_t rows, int64_t depth, int64_t panel, float* to) {
    constexpr int64_t kSome = 8;  // panels whose lines are read once
    int64_t r = 0;
    if (strides.column != 1)
        for (; r + kSome * kTall <= rows; r += kSome * kTall, to += kSome * panel)
            pack_columns<kSome>(a + r, strides.column, kSome * kTall, depth, panel, to);
    for (; r < rows; r += kTall, to += panel) {
        const int64_t some = std::min<int64_t>(kTall, rows - r);
        if (strides.column == 1)
            pack_rows(a + r * strides.row, strides.row, some, depth, to);
        else
            pack_columns<1>(a + r, strides.column, some, depth, panel, to);
    }
}

// `columns` <= kWide vectors of B -> a panel, with zeros beside them to the next whole vector.
template <class Number>
KERNEL static void pack_numbers(const Number* b, const Layout& lies, int64_t columns, int64_t depth, float* to) {
    const int64_t width = (columns + LANES - 1) / LANES * LANES;
    if (lies.column == 1) {
        for (int64_t d = 0; d < depth; ++d)
            for (int64_t j = 0; j < width; j += LANES) store(to + d * width + j, take(b + d * lies.row + j, columns - j));
        return;
    }
    for (int64_t j = 0; j < width; j += LANES)
        for (int64_t d = 0; d < depth; d += LANES)
            transpose_some(b + j * lies.column + d, lies.column, columns - j, std::min<int64_t>(LANES, depth - d),
                           to + d * width + j, width);
}

KERNEL static void pack_right(const void* b, const Layout& lies, int64_t columns, int64_t depth, float* to) {
    if (lies.type == kBfloat16)
        pack_numbers(static_cast<const uint16_t*>(b), lies, columns, depth, to);
    else if (lies.type == kFloat16)
        pack_numbers(static_cast<const Float16*>(b), lies, columns, depth, to);
    else
        pack_numbers(static_cast<const float*>(b), lies, columns, depth, to);
}

// Of A's panels rows are ROW numbers apart, and depths DEPTH.
template <int COLUMNS, int ROW, int DEPTH>
KERNEL static inline void multiply_panels(const float* left, int64_t panel, int64_t rows, const float* right,
                                          int64_t columns, int64_t depth, bool adds, float* sums, const Result* result,
                                          Ahead ahead) {
    constexpr int64_t kRow = COLUMNS * LANES;
    const int64_t tiles = (rows + kTall - 1) / kTall, runs = (ahead.runs + tiles - 1) / tiles;
    for (int64_t r = 0; r < rows; r += kTall, left += panel, sums += kTall * kRow) {
        for (int64_t i = 0; i < std::min(runs, ahead.runs); ++i, ahead.first += ahead.row)
            for (int64_t j = 0; j < ahead.length; j += 64) __builtin_prefetch(ahead.first + j, 0, 2);
        ahead.runs -= runs;
        for (int64_t i = 0; result && i < std::min<int64_t>(kTall, rows - r); ++i)
            for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(result->c + (r + i) * result->row + j, 1);
        product_tile<kTall, COLUMNS, true>(depth, left, ROW, DEPTH, right, kRow, adds, sums, kRow, left + panel);
        if (!result) continue;
        for (int64_t i = 0; i < std::min<int64_t>(kTall, rows - r); ++i) {
            float* to = result->c + (r + i) * result->row;
            for (int64_t j = 0; j < columns; j += LANES) {
                const int64_t rest = columns - j;
                Vector sum = load(sums + i * kRow + j);
                if (result->bias) sum += take(result->bias + j, rest);
                if (result->adds) sum += take(to + j, rest);
                put(to + j, sum, rest);
            }
        }
    }
}

// sums = left right, or += that, a tile of kTall rows behind the other; with `result` they end there.
template <int ROW, int DEPTH>
KERNEL static void multiply_some(const float* left, int64_t panel, int64_t rows, const float* right, int64_t columns,
                                 int64_t depth, bool adds, float* sums, const Result* result, Ahead ahead) {
    const auto multiply = [](int64_t vectors) {
        switch (vectors) {
            case 1: return multiply_panels<1, ROW, DEPTH>;
            case 2: return multiply_panels<2, ROW, DEPTH>;
#if LANES == 16
            case 3: return multiply_panels<3, ROW, DEPTH>;
#endif
            default: return multiply_panels<kWide, ROW, DEPTH>;
        }
    }((columns + LANES - 1) / LANES);
    multiply(left, panel, rows, right, columns, depth, adds, sums, result, ahead);
}

static const Kernels kernels = {
    kTall, kWide * LANES, pack_left, pack_right, {multiply_some<1, kTall>, multiply_some<kDepth, 1>}};
