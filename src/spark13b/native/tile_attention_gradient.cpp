// The gradient of attention by tiles. A block of queries computes its scores again, and from them the packed factors of the
// three products that follow:
//
//     weights w = 2^(scores - log2 of their sum)    dv^T += dout^T w
//     changes c = w (dout v^T - sum(dout out))      dk^T += q^T c       dq += c k
//
// dk and dv are summed up transposed: then w and c are right factors, whose pairs of depth are two rows of scores, and only
// the sums are ever transposed, once a head.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention_tiles.h"
#include "tile_attention.h"

#ifdef SPARK13B_TILES

namespace {

using namespace tiles;

constexpr int64_t kPanels = 4;  // of 32 queries, in a block
constexpr int64_t kSteps = 2;   // of 32 keys that a block meets at once

// Rows that a left factor has packed, `a` and `b`, become a pair of depth of a right factor: row `pair` of its two tiles.
// Of one part, the first tile's columns are then the numbers 0, 2, 4, ... and the second's 1, 3, 5, ...; of three, they stay.
template <int PARTS>
TILES inline void pack_pair(const __m512i* a, const __m512i* b, int64_t pair, char* to) {
    for (int part = 0; part < PARTS; ++part) {
        char* row = to + part * 2 * kTileBytes + pair * 64;
        _mm512_storeu_si512(row, _mm512_mask_blend_epi16(0xaaaaaaaa, a[part], _mm512_slli_epi32(b[part], 16)));
        _mm512_storeu_si512(row + kTileBytes,
                            _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a[part], 16), b[part]));
    }
}

// Memory of a head, and of a block of its queries.
template <int PARTS>
struct Head {
    char *key_columns, *value_columns, *key_steps;  // packed: k^T, v^T, k
    float *dk, *dv;                                 // sums, transposed, square by square
    char *queries, *gradients, *queries_across, *gradients_across;  // packed: q, dout, q^T, dout^T
    char *weights, *changes, *changes_across;                       // packed: w and c as right factors, c as left factor
    float *rows, *scores, *score_changes, *sums, *logs, *deltas;

    Head(Arena& arena, int64_t keys, int64_t size) {
        constexpr int64_t kStep = step_bytes(PARTS);
        const int64_t depth = steps_of(size), steps = steps_of(keys);
        for (char** panels : {&key_columns, &value_columns, &key_steps}) *panels = arena.take<char>(steps * depth * kStep);
        for (float** squares : {&dk, &dv}) *squares = arena.take<float>(steps * depth * kSquare);
        for (char** panels : {&queries, &gradients, &queries_across, &gradients_across})
            *panels = arena.take<char>(kPanels * depth * kStep);
        for (char** panels : {&weights, &changes}) *panels = arena.take<char>(kPanels * kStep);
        changes_across = arena.take<char>(kPanels * kSteps * kStep);
        rows = arena.take<float>(kPanels * kSide * size);
        scores = arena.take<float>(kSquare);
        score_changes = arena.take<float>(kSquare);
        sums = arena.take<float>(kPanels * depth * kSquare);
        logs = arena.take<float>(kPanels * kSide);
        deltas = arena.take<float>(kPanels * kSide);
    }
};

// A square of scores, and of dout v^T -> w and c. Rows that have no query have zeros in q and dout, which is enough.
template <int PARTS, bool MASKED>
TILES void differentiate(const Sight& sight, int64_t first, const float* scores, const float* score_changes,
                         const float* logs, const float* deltas, char* weights, char* changes, char* changes_across) {
    constexpr int64_t kPart = 2 * kTileBytes;
    for (int64_t pair = 0; pair < 16; ++pair) {
        __m512i weight_parts[2][PARTS], change_parts[2][PARTS];
        for (int i = 0; i < 2; ++i) {
            const int64_t row = PARTS == 1 ? 2 * pair + i : pair + 16 * i;  // as pack_tile pairs them
            const __m512 log = _mm512_set1_ps(logs[row]), delta = _mm512_set1_ps(deltas[row]);
            const Seen seen(sight, row, first);
            __m512 weight[2], change[2];
            for (int half = 0; half < 2; ++half) {
                const int64_t at = row * kSide + half * 16;
                weight[half] = power_of_two<PARTS>(_mm512_sub_ps(_mm512_load_ps(scores + at), log));
                change[half] = _mm512_mul_ps(weight[half], _mm512_sub_ps(_mm512_load_ps(score_changes + at), delta));
                if constexpr (MASKED) {
                    weight[half] = _mm512_maskz_mov_ps(seen.of(half * 16), weight[half]);
                    change[half] = _mm512_maskz_mov_ps(seen.of(half * 16), change[half]);
                }
            }
            pack_row<PARTS>(weight[0], weight[1], weight_parts[i]);
            pack_row<PARTS>(change[0], change[1], change_parts[i]);
            for (int part = 0; part < PARTS; ++part)
                _mm512_store_si512(changes_across + part * kPart + row * 64, change_parts[i][part]);
        }
        pack_pair<PARTS>(weight_parts[0], weight_parts[1], pair, weights);
        pack_pair<PARTS>(change_parts[0], change_parts[1], pair, changes);
    }
}

// `count` <= 128 queries of a head whose keys and values are packed: dq is written, dk and dv are added to.
template <int PARTS>
TILES void differentiate_block(const Head<PARTS>& head, int64_t key_steps, int64_t size, int64_t count, int64_t position,
                               int64_t window, const float* q, int64_t q_row, const float* out, int64_t out_row,
                               const float* log_sums, const float* dout, int64_t dout_row, float* dq, int64_t dq_row) {
    constexpr int64_t kStep = step_bytes(PARTS);
    const int64_t depth = steps_of(size), panels = steps_of(count);
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    scale_rows(q, q_row, count, size, scale * kLog2OfE, head.rows);
    for (int64_t p = 0; p < panels; ++p) {
        const int64_t rows = std::min(kSide, count - p * kSide);
        pack_panel<PARTS, false>(Operand<float>{head.rows + p * kSide * size, size, 1}, rows, size,
                                 head.queries + p * depth * kStep);
        pack_panel<PARTS, false>(Operand<float>{dout + p * kSide * dout_row, dout_row, 1}, rows, size,
                                 head.gradients + p * depth * kStep);
    }
    for (int64_t i = 0; i < depth; ++i) {
        const int64_t some = std::min(kSide, size - i * kSide);
        pack_panel<PARTS, false>(Operand<float>{head.rows + i * kSide, 1, size}, some, count,
                                 head.queries_across + i * kPanels * kStep);
        pack_panel<PARTS, false>(Operand<float>{dout + i * kSide, 1, dout_row}, some, count,
                                 head.gradients_across + i * kPanels * kStep);
    }
    for (int64_t t = 0; t < panels * kSide; ++t) {
        __m512 delta = _mm512_setzero_ps();
        for (int64_t d = 0; d < size && t < count; d += 16) {
            __m512 change = load(dout + t * dout_row + d, size - d);
            // as the products have it: a query that sees one key then changes nothing
            if (PARTS == 1) change = widened((__m256i)_mm512_cvtneps_pbh(change));
            delta = _mm512_fmadd_ps(load(out + t * out_row + d, size - d), change, delta);
        }
        head.deltas[t] = _mm512_reduce_add_ps(delta);
        head.logs[t] = t < count ? log_sums[t] * kLog2OfE : 0.0f;
    }
    std::memset(head.sums, 0, panels * depth * kSquare * sizeof(float));
    const Turn turn;
    const auto begin_of = [&](int64_t p) { return Sight{position + p * kSide, window}.begin(); };
    const auto end_of = [&](int64_t p) {
        return Sight{position + p * kSide, window}.end(std::min(kSide, count - p * kSide));
    };
    for (int64_t first = begin_of(0); first < end_of(panels - 1); first += kSteps) {
        const int64_t last = std::min(first + kSteps, end_of(panels - 1));
        for (int64_t step = first; step < last; ++step) {
            int64_t low = 0, high = panels;  // the panels that see some of these keys
            while (low < panels && end_of(low) <= step) ++low;
            while (high > low && begin_of(high - 1) > step) --high;
            for (int64_t p = low; p < high; ++p) {
                multiply<PARTS, true>(head.queries + p * depth * kStep, head.key_columns + step * depth * kStep, depth,
                                      false, head.scores);
                multiply<PARTS, true>(head.gradients + p * depth * kStep, head.value_columns + step * depth * kStep,
                                      depth, false, head.score_changes);
                const Sight sight{position + p * kSide, window};
                const auto run = sight.all(step, step + 1) ? differentiate<PARTS, false> : differentiate<PARTS, true>;
                run(sight, step * kSide, head.scores, head.score_changes, head.logs + p * kSide, head.deltas + p * kSide,
                    head.weights + p * kStep, head.changes + p * kStep,
                    head.changes_across + (p * kSteps + step - first) * kStep);
            }
            for (int64_t i = 0; i < depth; ++i) {
                const int64_t across = (i * kPanels + low) * kStep, square = (step * depth + i) * kSquare;
                multiply<PARTS>(head.gradients_across + across, head.weights + low * kStep, high - low, true,
                                head.dv + square);
                multiply<PARTS>(head.queries_across + across, head.changes + low * kStep, high - low, true,
                                head.dk + square);
            }
        }
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t begin = std::max(first, begin_of(p)), steps = std::min(last, end_of(p)) - begin;
            if (steps <= 0) continue;
            for (int64_t i = 0; i < depth; ++i)
                multiply<PARTS, true>(head.changes_across + (p * kSteps + begin - first) * kStep,
                                      head.key_steps + (i * key_steps + begin) * kStep, steps, true,
                                      head.sums + (p * depth + i) * kSquare);
        }
    }
    for (int64_t t = 0; t < count; ++t)
        write_row(head.sums + (t / kSide * depth * kSide + t % kSide) * kSide, size, scale, dq + t * dq_row);
}

// Transposed sums of a step of keys, times `factor` -> its rows of `size`.
template <int PARTS>
TILES void write_across(const float* squares, int64_t rows, int64_t size, float factor, float* to, int64_t row) {
    for (int64_t d = 0; d < size; d += 16)
        for (int64_t half = 0; half < 2; ++half) {
            __m512i square[16];
            const float* from = squares + d / kSide * kSquare + d % kSide * kSide + half * 16;
            for (int64_t i = 0; i < 16; ++i)
                square[i] = _mm512_castps_si512(
                    _mm512_mul_ps(_mm512_load_ps(from + i * kSide), _mm512_set1_ps(factor)));
            transpose(square);
            for (int64_t i = 0; i < 16; ++i) {
                const int64_t r = PARTS == 1 ? 2 * i + half : 16 * half + i;
                if (r < rows)
                    _mm512_mask_storeu_ps(to + r * row + d, first_of(size - d), _mm512_castsi512_ps(square[i]));
            }
        }
}

template <int PARTS>
bool differentiate(Pool::Turn& pool, const AttentionShape& shape, Rows<const float> q, Rows<const float> k,
                   Rows<const float> v, Rows<const float> out, const float* log_sums, Rows<const float> dout,
                   Rows<float> dq, Rows<float> dk, Rows<float> dv) {
    const int64_t size = shape.size, steps = steps_of(shape.keys), square_floats = steps_of(size) * kSquare;
    Arena measured(nullptr);
    const Head<PARTS> none(measured, shape.keys, size);
    char* memory = memory_of(pool.workers() * measured.used());
    if (!memory) return false;
    pool.share(shape.batch * shape.heads, [&](int64_t pair, int worker) {
        const int64_t b = pair / shape.heads, h = pair % shape.heads;
        Arena arena(memory + worker * measured.used());
        const Head<PARTS> head(arena, shape.keys, size);
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t first = step * kSide, rows = std::min(kSide, shape.keys - first);
            const int64_t panel = step * steps_of(size) * step_bytes(PARTS);
            pack_columns<PARTS>(k.of(b, h) + first * k.row, k.row, rows, size, head.key_columns + panel);
            pack_columns<PARTS>(v.of(b, h) + first * v.row, v.row, rows, size, head.value_columns + panel);
            pack_step<PARTS>(k.of(b, h) + first * k.row, k.row, rows, size, step, steps, head.key_steps);
        }
        std::memset(head.dk, 0, steps * square_floats * sizeof(float));
        std::memset(head.dv, 0, steps * square_floats * sizeof(float));
        for (int64_t first = 0; first < shape.queries; first += kPanels * kSide)
            differentiate_block(head, steps, size, std::min(kPanels * kSide, shape.queries - first),
                                shape.start + first, shape.window, q.of(b, h) + first * q.row, q.row,
                                out.of(b, h) + first * out.row, out.row, log_sums + pair * shape.queries + first,
                                dout.of(b, h) + first * dout.row, dout.row, dq.of(b, h) + first * dq.row, dq.row);
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t first = step * kSide, rows = std::min(kSide, shape.keys - first);
            write_across<PARTS>(head.dk + step * square_floats, rows, size, kLogOf2, dk.of(b, h) + first * dk.row, dk.row);
            write_across<PARTS>(head.dv + step * square_floats, rows, size, 1.0f, dv.of(b, h) + first * dv.row, dv.row);
        }
    });
    return true;
}

}  // namespace

bool attend_rows_gradient_by_tiles(Pool::Turn& pool, const AttentionShape& shape, Rows<const float> q,
                                   Rows<const float> k, Rows<const float> v, Rows<const float> out,
                                   const float* log_sums, Rows<const float> dout, Rows<float> dq, Rows<float> dk,
                                   Rows<float> dv) {
    return shape.type == kBfloat16 ? differentiate<1>(pool, shape, q, k, v, out, log_sums, dout, dq, dk, dv)
                                   : differentiate<3>(pool, shape, q, k, v, out, log_sums, dout, dq, dk, dv);
}

#else

bool attend_rows_gradient_by_tiles(Pool::Turn&, const AttentionShape&, Rows<const float>, Rows<const float>,
                                   Rows<const float>, Rows<const float>, const float*, Rows<const float>, Rows<float>,
                                   Rows<float>, Rows<float>) {
    return false;
}

#endif
