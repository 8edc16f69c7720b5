// Products of int8 and int4 weights by inputs of 16 bits, by AMX, from five rows of inputs on. Part of kernels.h.
//
// A strip's levels of 64 columns are a tile as they lie; int4's are unpacked into one. The high and the low bytes of a row's
// inputs are two rows of a tile, so that a product of tiles makes both sums of 8 rows and 16 outputs, for a group of 64.
// The whole sums are those of whole_numbers.h, and so is what becomes of them: the bits are the same.
//
// What a tile stores is read by vectors when the next groups are in the tiles, and weights are unpacked a turn before they are
// loaded: neither finds the other's bytes before they are in the cache.

#define BYTE_TILES                                                                                               \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8" WHOLE_VECTORS)))

// Sizes of tiles for up to 16 rows of inputs: 0 to 3 are sums, 4 and 5 inputs, 6 and 7 weights. With more than 8 rows odd ones
// have those from the ninth on.
struct TileShapes {
    struct alignas(64) Shape {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    };
    Shape of[2][17];  // groups of 32, or parts of 64 of a group; rows of inputs

    TileShapes() {
        for (int part = 0; part < 2; ++part)
            for (int rows = 1; rows <= 16; ++rows)
                for (int tile = 0; tile < 8; ++tile) {
                    const int own = rows <= 8 ? rows : tile % 2 == 0 ? 8 : rows - 8, depth = 32 << part;
                    of[part][rows].rows[tile] = static_cast<uint8_t>(tile < 6 ? 2 * own : depth / 4);
                    of[part][rows].row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? depth : 64);
                }
    }
};

BYTE_TILES static inline void shape_tiles(int64_t group, int64_t rows) {
    static const TileShapes shapes;
    _tile_loadconfig(&shapes.of[group >= 64][rows]);
}

// Levels of a group of a whole strip, a byte each.
KERNEL static inline void unpack_int4(const uint8_t* w, int64_t group, uint8_t* to) {
    for (int64_t i = 0; i < group / 8; ++i) {
        Integers quads[2];
        QuadsInt4::open(load_lanes<true>(w + 64 * i, LANES), quads);
        __builtin_prefetch(w + 64 * i + kAhead);
        _mm512_store_si512(to + 128 * i, (__m512i)quads[0]);
        _mm512_store_si512(to + 128 * i + 64, (__m512i)quads[1]);
    }
}

// Whole strips from output `begin` to `end`, for a block of up to ROWS rows. PARTS: of 64 columns, or less, of a group.
template <class Quads, int ROWS, int PARTS>
BYTE_TILES static void strips_by_tiles(const Matrix& w, const float* bias, const RoundedRows& x, int64_t in, bool adds,
                                       float* y, int64_t y_stride, int64_t begin, int64_t end) {
    constexpr bool kPacked = Quads::kQuads == 2;
    constexpr int kHalves = ROWS <= 8 ? 1 : 2, kGroups = 4 / kHalves;  // as many groups at once as there are tiles for sums
    constexpr int64_t kTile = 1024;
    const int64_t group = w.group, groups = in / group, levels = group * kStrip, turns = (groups + kGroups - 1) / kGroups;
    const int64_t inputs = x.rows * 2 * group;  // bytes of a group
    alignas(64) uint8_t unpacked[2][kGroups][PARTS * kTile];
    alignas(64) int32_t stored[2][4][256] = {};
    for (int64_t o = begin; o < end; o += kStrip) {
        const Strip strip = Strip::of(w, o, in);
        const auto unpack = [&](int64_t turn) BYTE_TILES {
            for (int64_t j = 0; j < kGroups && turn * kGroups + j < groups; ++j)
                unpack_int4(strip.data + (turn * kGroups + j) * levels / 2, group, unpacked[turn % 2][j]);
        };
        Vector sums[ROWS] = {};
        if (kPacked) unpack(0);
        for (int64_t turn = 0; turn <= turns; ++turn) {
            const int64_t left = groups - turn * kGroups;
            if (kPacked && turn + 1 < turns) unpack(turn + 1);
            if (left > 0) {
                const int8_t* a = x.bytes + turn * kGroups * inputs;
                const uint8_t* b = kPacked ? unpacked[turn % 2][0] : strip.data + turn * kGroups * levels;
                const int64_t b_step = kPacked ? PARTS * kTile : levels;
                int32_t(*to)[256] = stored[turn % 2];
                if (!kPacked)
                    for (int64_t line = 0; line < kGroups * levels; line += 64) __builtin_prefetch(b + line + kAhead);
// one part of a group: a tile of weights, by 8 rows of inputs or less, or by both such tiles
#define ADD_PART(j, part, sum, input, weight)                                                     \
    _tile_loadd(weight, b + (j) * b_step + (part) * kTile, 64);                                   \
    _tile_loadd(input, a + (j) * inputs + (part) * 64, group);                                    \
    _tile_dpbssd(sum, input, weight)
#define ADD_PART_TO_BOTH(j, part, sum, other, weight)                                             \
    ADD_PART(j, part, sum, 4, weight);                                                            \
    _tile_loadd(5, a + (j) * inputs + 8 * 2 * group + (part) * 64, group);                        \
    _tile_dpbssd(other, 5, weight)
#define ADD_GROUP(j, sum, input, weight)                                                          \
    if (left > (j)) {                                                                             \
        _tile_zero(sum);                                                                          \
        ADD_PART(j, 0, sum, input, weight);                                                       \
        if (PARTS == 2) {                                                                         \
            ADD_PART(j, 1, sum, input, weight);                                                   \
        }                                                                                         \
    }
#define ADD_GROUP_TO_BOTH(j, sum, other, weight)                                                  \
    if (left > (j)) {                                                                             \
        _tile_zero(sum);                                                                          \
        _tile_zero(other);                                                                        \
        ADD_PART_TO_BOTH(j, 0, sum, other, weight);                                               \
        if (PARTS == 2) {                                                                         \
            ADD_PART_TO_BOTH(j, 1, sum, other, weight);                                           \
        }                                                                                         \
    }
                if (kHalves == 1) {
                    ADD_GROUP(0, 0, 4, 6)
                    ADD_GROUP(1, 1, 5, 7)
                    ADD_GROUP(2, 2, 4, 6)
                    ADD_GROUP(3, 3, 5, 7)
                } else {
                    ADD_GROUP_TO_BOTH(0, 0, 1, 6)
                    ADD_GROUP_TO_BOTH(1, 2, 3, 7)
                }
#undef ADD_PART
#undef ADD_PART_TO_BOTH
#undef ADD_GROUP
#undef ADD_GROUP_TO_BOTH
                _tile_stored(0, to[0], 64);
                _tile_stored(1, to[1], 64);
                _tile_stored(2, to[2], 64);
                _tile_stored(3, to[3], 64);
            }
            if (turn == 0) continue;
            for (int64_t j = 0; j < kGroups; ++j) {  // of the turn before
                const int64_t g = (turn - 1) * kGroups + j;
                if (g >= groups) break;
                const uint16_t* scales = strip.scales + g * kStrip;
                __builtin_prefetch(scales + 16 * kStrip);
                const Vector scale = load(scales);
#pragma GCC unroll 16
                for (int t = 0; t < ROWS; ++t) {
                    const int32_t* both = stored[(turn - 1) % 2][j * kHalves + t / 8] + t % 8 * 32;
                    const __m512i high = _mm512_slli_epi32(_mm512_load_si512(both), 8);
                    const __m512i whole = _mm512_add_epi32(high, _mm512_load_si512(both + 16));
                    sums[t] = add_group(sums[t], (Integers)whole, scale, x.scales[g * x.rows + t]);
                }
            }
        }
#pragma GCC unroll 16
        for (int t = 0; t < ROWS; ++t)
            if (t < x.rows) finish(sums[t], bias ? bias + o : nullptr, adds, y + t * y_stride + o, kStrip);
    }
}

template <class Quads, int ROWS>
BYTE_TILES static void strips_by_tiles(const Matrix& w, const float* bias, const RoundedRows& x, int64_t in, bool adds,
                                       float* y, int64_t y_stride, int64_t begin, int64_t end) {
    if (w.group == 128)
        strips_by_tiles<Quads, ROWS, 2>(w, bias, x, in, adds, y, y_stride, begin, end);
    else
        strips_by_tiles<Quads, ROWS, 1>(w, bias, x, in, adds, y, y_stride, begin, end);
}

template <class Quads>
BYTE_TILES static void strips_by_tiles(const Matrix& w, const float* bias, const Rounded& x, int64_t in, bool adds,
                                       float* y, int64_t y_stride, int64_t begin, int64_t end) {
    // outputs in pieces that stay in the second cache, when there are more rows than tiles take at once
    const int64_t some = std::max<int64_t>(1, (1 << 21) / (in * bits_of(w.type)) / kStrip) * kStrip;
    const int64_t piece = x.rows <= kRoundedRows ? end - begin : some;
    for (int64_t o = begin; o < end; o += piece) {
        const int64_t stop = std::min(end, o + piece);
        for (int64_t t = 0; t < x.rows; t += kRoundedRows) {
            const RoundedRows own = x.from(t, in, w.group);
            float* to = y + t * y_stride;
            shape_tiles(w.group, own.rows);
            if (own.rows > 12)
                strips_by_tiles<Quads, 16>(w, bias, own, in, adds, to, y_stride, o, stop);
            else if (own.rows > 8)
                strips_by_tiles<Quads, 12>(w, bias, own, in, adds, to, y_stride, o, stop);
            else if (own.rows > 4)
                strips_by_tiles<Quads, 8>(w, bias, own, in, adds, to, y_stride, o, stop);
            else
                strips_by_tiles<Quads, 4>(w, bias, own, in, adds, to, y_stride, o, stop);
        }
    }
    _tile_release();
}

// As linear_of_rounded. A strip that is not whole is left to it.
KERNEL static void linear_by_tiles(const Matrix& w, const float* bias, int8_t* rounded, int64_t rows, int64_t in, bool adds,
                                   float* y, int64_t y_stride, int64_t begin, int64_t end) {
    const Rounded x = {rounded, rows};
    const int64_t whole = std::min(end, w.outputs / kStrip * kStrip);
    if (begin < whole && w.type == kInt8)
        strips_by_tiles<QuadsInt8>(w, bias, x, in, adds, y, y_stride, begin, whole);
    else if (begin < whole)
        strips_by_tiles<QuadsInt4>(w, bias, x, in, adds, y, y_stride, begin, whole);
    if (whole < end) linear_of_rounded(w, bias, rounded, rows, in, adds, y, y_stride, std::max(begin, whole), end);
}
