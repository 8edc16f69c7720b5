// Attention by tiles: every product is one of packed panels (tiles.h), and what is between two of them packs its result as
// the next one reads it. Queries are rows, so that a query's weights are a row of the left factor of weights x values.
//
// Scores are those of e^x as 2^(x log2 e): the factor goes with 1 / sqrt(D) into the queries, before they are rounded.

#include "tile_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention_tiles.h"
#include "weights.h"

#ifdef SPARK13B_TILES

namespace {

using namespace tiles;

constexpr int64_t kPanels = 2;                 // of 32 queries, in a block
constexpr int64_t kSteps = 2;                  // of 32 keys, whose scores are in memory at once
constexpr int64_t kPackedBytes = 32 << 20;     // of keys and values at once, but always a head's
constexpr float kNothing = -1e30f;             // the largest of no scores
constexpr float kGrowth = 8.0f;                // by which a score may be above what it is measured from

// What a block of queries needs beside the keys and values of its head.
template <int PARTS>
struct Block {
    char *queries, *weights[2];
    float *rows, *scores[2], *sums, *totals, *bases, *factors;

    Block(Arena& arena, int64_t size) {
        constexpr int64_t kStep = step_bytes(PARTS);
        const int64_t depth = steps_of(size);
        queries = arena.take<char>(kPanels * depth * kStep);
        for (int turn = 0; turn < 2; ++turn) {
            weights[turn] = arena.take<char>(kSteps * kStep);
            scores[turn] = arena.take<float>(kSteps * kSquare);
        }
        rows = arena.take<float>(kSide * size);
        sums = arena.take<float>(kPanels * depth * kSquare);
        totals = arena.take<float>(kPanels * kSide * 16);
        bases = arena.take<float>(kPanels * kSide);
        factors = arena.take<float>(kSide);
    }
};

// A panel of queries and some steps of the keys that they see.
struct Part {
    int64_t panel, begin, steps;
    Sight sight;
};

// The parts of a block: some steps of keys after the others, and with each of them the panels that see some.
class Parts {
  public:
    Parts(int64_t position, int64_t count, int64_t window)
        : position_(position), count_(count), window_(window), first_(Sight{position, window}.begin()) {}

    bool next(Part& part) {
        for (; first_ * kSide < position_ + count_; first_ += kSteps, panel_ = 0)
            while (panel_ * kSide < count_) {
                const int64_t panel = panel_++, rows = std::min(kSide, count_ - panel * kSide);
                const Sight sight{position_ + panel * kSide, window_};
                const int64_t begin = std::max(first_, sight.begin()), end = std::min(first_ + kSteps, sight.end(rows));
                if (begin >= end) continue;
                part = {panel, begin, end - begin, sight};
                return true;
            }
        return false;
    }

  private:
    const int64_t position_, count_, window_;
    int64_t first_, panel_ = 0;
};

// Rows `row` to `end` - 1 of a part's scores -> their weights, packed. A weight is 2^(score - base), and the base stays while
// it is at most 8 below the largest score; where it grows, the row's `factor` is what sums before it are to be multiplied by.
// -> whether one grew.
template <int PARTS, bool MASKED>
TILES bool soften(const Part& part, const float* scores, int64_t row, int64_t end, float* bases, float* totals,
                  float* factors, char* weights) {
    constexpr int64_t kStep = step_bytes(PARTS);
    bool grew = false;
    for (; row < end; ++row) {
        const float* at = scores + row * kSide;
        const Seen seen(part.sight, row, part.begin * kSide);
        __m512 largest = _mm512_set1_ps(kNothing), other = largest;
        for (int64_t s = 0; s < part.steps; ++s) {
            const __m512 left = _mm512_load_ps(at + s * kSquare), right = _mm512_load_ps(at + s * kSquare + 16);
            if constexpr (MASKED) {
                largest = _mm512_mask_max_ps(largest, seen.of(s * kSide), largest, left);
                other = _mm512_mask_max_ps(other, seen.of(s * kSide + 16), other, right);
            } else {
                largest = _mm512_max_ps(largest, left);
                other = _mm512_max_ps(other, right);
            }
        }
        largest = _mm512_max_ps(largest, other);
        __m512 total = _mm512_load_ps(totals + row * 16);
        factors[row] = 1.0f;
        if (_mm512_cmp_ps_mask(largest, _mm512_set1_ps(bases[row] + kGrowth), _CMP_GT_OQ)) {
            const float base = _mm512_reduce_max_ps(largest);
            const __m512 factor = power_of_two<3>(_mm512_set1_ps(bases[row] - base));
            total = _mm512_mul_ps(total, factor);
            factors[row] = _mm512_cvtss_f32(factor);
            bases[row] = base;
            grew = true;
        }
        const __m512 base = _mm512_set1_ps(bases[row]);
        for (int64_t s = 0; s < part.steps; ++s) {
            __m512 left = power_of_two<PARTS>(_mm512_sub_ps(_mm512_load_ps(at + s * kSquare), base));
            __m512 right = power_of_two<PARTS>(_mm512_sub_ps(_mm512_load_ps(at + s * kSquare + 16), base));
            if constexpr (MASKED) {
                left = _mm512_maskz_mov_ps(seen.of(s * kSide), left);
                right = _mm512_maskz_mov_ps(seen.of(s * kSide + 16), right);
            }
            total = _mm512_add_ps(total, _mm512_add_ps(left, right));
            __m512i parts[PARTS];
            pack_row<PARTS>(left, right, parts);
            for (int which = 0; which < PARTS; ++which)
                _mm512_store_si512(weights + s * kStep + which * 2 * kTileBytes + row * 64, parts[which]);
        }
        _mm512_store_ps(totals + row * 16, total);
    }
    return grew;
}

// `count` <= 64 queries of one head, the first at `position`. `keys` and `values` are packed, `key_steps` steps of them.
// Weights of a part are made between the products of the next one's scores and of the one's before with its values: tiles
// and vectors work at the same time, and neither waits for what the other has just written.
template <int PARTS>
TILES void attend_block(const float* q, int64_t q_row, int64_t count, int64_t position, int64_t window, int64_t size,
                        const char* keys, const char* values, int64_t key_steps, float* out, int64_t out_row,
                        float* log_sums, const Block<PARTS>& block) {
    constexpr int64_t kStep = step_bytes(PARTS);
    const int64_t depth = steps_of(size), panels = steps_of(count);
    const float scale = kLog2OfE / std::sqrt(static_cast<float>(size));
    for (int64_t p = 0; p < panels; ++p) {
        const int64_t rows = std::min(kSide, count - p * kSide);
        scale_rows(q + p * kSide * q_row, q_row, rows, size, scale, block.rows);
        pack_panel<PARTS, false>(Operand<float>{block.rows, size, 1}, rows, size,
                                        block.queries + p * depth * kStep);
    }
    std::memset(block.sums, 0, panels * depth * kSquare * sizeof(float));
    std::memset(block.totals, 0, panels * kSide * 16 * sizeof(float));
    std::fill_n(block.bases, panels * kSide, kNothing);
    const Turn turn;
    Parts parts(position, count, window);
    Part before{}, now{}, next{};
    bool more = parts.next(next);
    for (int64_t n = -1; n < 0 || now.steps > 0 || before.steps > 0; ++n) {
        // products: the next part's scores, and the last one's weights with values
        const int64_t score_products = more ? next.steps : 0, products = score_products + (before.steps > 0 ? depth : 0);
        const char* weights = block.weights[(n + 1) % 2];
        float* scores = block.scores[(n + 1) % 2];
        float* factors = block.factors;
        const auto run = now.sight.all(now.begin, now.begin + now.steps) ? soften<PARTS, false> : soften<PARTS, true>;
        bool grew = false;
        for (int64_t i = 0, row = 0; i < std::max<int64_t>(products, 1); ++i) {
            if (i < score_products)
                multiply<PARTS, true>(block.queries + next.panel * depth * kStep,
                                             keys + (next.begin + i) * depth * kStep, depth, false, scores + i * kSquare);
            else if (i < products)
                multiply<PARTS, true>(weights, values + ((i - score_products) * key_steps + before.begin) * kStep,
                                             before.steps, true,
                                             block.sums + (before.panel * depth + i - score_products) * kSquare);
            if (now.steps == 0) continue;
            const int64_t end = products == 0 ? kSide : (i + 1) * kSide / products;
            grew |= run(now, block.scores[n % 2], row, end, block.bases + now.panel * kSide,
                        block.totals + now.panel * kSide * 16, factors, block.weights[n % 2]);
            row = end;
        }
        if (grew)
            for (int64_t i = 0; i < depth; ++i)
                for (int64_t row = 0; row < kSide; ++row) {
                    float* at = block.sums + ((now.panel * depth + i) * kSide + row) * kSide;
                    const __m512 factor = _mm512_set1_ps(factors[row]);
                    _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), factor));
                    _mm512_store_ps(at + 16, _mm512_mul_ps(_mm512_load_ps(at + 16), factor));
                }
        before = now;
        now = more ? next : Part{};
        if (more) more = parts.next(next);
    }
    for (int64_t t = 0; t < count; ++t) {
        const float total = _mm512_reduce_add_ps(_mm512_load_ps(block.totals + t * 16));
        if (log_sums) log_sums[t] = block.bases[t] * kLogOf2 + std::log(total);
        write_row(block.sums + t / kSide * depth * kSquare + t % kSide * kSide, size, 1.0f / total, out + t * out_row);
    }
}

template <int PARTS, class Element>
bool attend(Pool::Turn& pool, const AttentionShape& shape, Rows<const float> q, Rows<const Element> k,
            Rows<const Element> v, Rows<float> out, float* log_sums) {
    const int64_t size = shape.size, blocks = (shape.queries + kPanels * kSide - 1) / (kPanels * kSide);
    const int64_t key_steps = steps_of(shape.start + shape.queries), pairs = shape.batch * shape.heads;
    const int64_t first_step = Sight{shape.start, shape.window}.begin();
    const int64_t head_bytes = key_steps * steps_of(size) * step_bytes(PARTS);
    const int64_t group = std::clamp<int64_t>(kPackedBytes / (2 * head_bytes), 1, pairs);
    Arena measured(nullptr);
    const Block<PARTS> none(measured, size);
    char* memory = memory_of(2 * group * head_bytes + pool.workers() * measured.used());
    if (!memory) return false;
    for (int64_t begin = 0; begin < pairs; begin += group) {
        const int64_t some = std::min(group, pairs - begin), steps = key_steps - first_step;
        pool.share(some * steps, [&](int64_t unit, int) {
            const int64_t pair = unit / steps, step = first_step + unit % steps, first = step * kSide;
            const int64_t b = (begin + pair) / shape.heads, h = (begin + pair) % shape.heads;
            const int64_t rows = std::min(kSide, shape.start + shape.queries - first);
            char *keys = memory + 2 * pair * head_bytes, *values = keys + head_bytes;
            pack_columns<PARTS>(k.of(b, h) + first * k.row, k.row, rows, size,
                                keys + step * steps_of(size) * step_bytes(PARTS));
            pack_step<PARTS>(v.of(b, h) + first * v.row, v.row, rows, size, step, key_steps, values);
        });
        pool.share(some * blocks, [&](int64_t unit, int worker) {
            // the last blocks of a text see most: first, so that none of them is left to one thread at the end
            const int64_t pair = unit / blocks, first = (blocks - 1 - unit % blocks) * kPanels * kSide;
            const int64_t b = (begin + pair) / shape.heads, h = (begin + pair) % shape.heads;
            const char *keys = memory + 2 * pair * head_bytes, *values = keys + head_bytes;
            Arena arena(memory + 2 * group * head_bytes + worker * measured.used());
            attend_block<PARTS>(q.of(b, h) + first * q.row, q.row, std::min(kPanels * kSide, shape.queries - first),
                                shape.start + first, shape.window, size, keys, values, key_steps,
                                out.of(b, h) + first * out.row, out.row,
                                log_sums ? log_sums + (begin + pair) * shape.queries + first : nullptr,
                                Block<PARTS>(arena, size));
        });
    }
    return true;
}

}  // namespace

bool attend_rows_by_tiles(Pool::Turn& pool, const AttentionShape& shape, Rows<const float> q, Rows<const float> k,
                          Rows<const float> v, Rows<float> out, float* log_sums) {
    return shape.type == kBfloat16 ? attend<1>(pool, shape, q, k, v, out, log_sums)
                                   : attend<3>(pool, shape, q, k, v, out, log_sums);
}

bool attend_rows_by_tiles(Pool::Turn& pool, const AttentionShape& shape, Rows<const float> q, Rows<const uint16_t> k,
                          Rows<const uint16_t> v, Rows<float> out) {
    return attend<1>(pool, shape, q, k, v, out, nullptr);
}

#else

bool attend_rows_by_tiles(Pool::Turn&, const AttentionShape&, Rows<const float>, Rows<const uint16_t>,
                          Rows<const uint16_t>, Rows<float>) {
    return false;
}

bool attend_rows_by_tiles(Pool::Turn&, const AttentionShape&, Rows<const float>, Rows<const float>, Rows<const float>,
                          Rows<float>, float*) {
    return false;
}

#endif
