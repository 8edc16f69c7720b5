// Attention's blocks of queries, shared by threads. attention.h says what is computed, attention_kernels.h how.

#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "levels.h"
#include "memory.h"
#include "tile_attention.h"

namespace {

constexpr int64_t kQueries = 64;    // of a block: 4 vectors of AVX-512
constexpr int64_t kKeys = 48;       // of a tile of scores, 12 KB
constexpr float kNothing = -1e30f;  // the score of a key that is not seen

// Which keys the queries of a block see: query t, at `position` + t, those with position + t - window < j <= position + t.
struct Sight {
    int64_t position, window;

    // Whether all `count` queries see all keys first .. first + keys - 1.
    bool all(int64_t count, int64_t first, int64_t keys) const {
        return first + keys - 1 <= position && position + count - 1 - window < first;
    }

    // The keys that any of them sees: begin .. end - 1.
    int64_t begin() const { return std::max<int64_t>(0, position - window + 1); }
    int64_t end(int64_t count) const { return position + count; }

    // The queries left .. right - 1 of the block are those that see one of the keys first .. end - 1.
    int64_t left(int64_t first) const { return std::max<int64_t>(0, first - position); }
    int64_t right(int64_t end) const { return std::min(kQueries, end - 1 + window - position); }
};

struct Kernels {
    void (*forward)(const float* q, int64_t q_row, int64_t count, const Sight& sight, int64_t size, float scale,
                    const float* k, int64_t k_row, const float* v, int64_t v_row, float* out, int64_t out_row,
                    float* log_sums, float* workspace);
    void (*backward)(const float* q, int64_t q_row, int64_t count, const Sight& sight, int64_t size, float scale,
                     const float* k, int64_t k_row, const float* v, int64_t v_row, const float* out, int64_t out_row,
                     const float* log_sums, const float* dout, int64_t dout_row, float* dq, int64_t dq_row, float* dk,
                     float* dv, int64_t width, float* workspace);
};

}  // namespace

#define KERNELS_FILE "attention_kernels.h"
#include "each_level.h"

namespace {

// So many numbers for each worker, kept from call to call: one caller at a time has the pool, and with it this.
class Workspace {
  public:
    Workspace(const Pool::Turn& pool, int64_t numbers) : stride_((numbers + 15) / 16 * 16) {
        static KeptMemory* memory = new KeptMemory;
        base_ = reinterpret_cast<float*>(memory->of(pool.workers() * stride_ * sizeof(float)));
    }

    bool ready() const { return base_ != nullptr; }
    float* of(int worker) const { return base_ + worker * stride_; }

  private:
    const int64_t stride_;
    float* base_;
};

// Tiles of float32 are packed in three parts, which takes as long as it saves unless so many queries meet a key.
bool by_tiles(int level, const AttentionShape& shape) {
    constexpr int64_t kMeet = 400;
    if (shape.type == kBfloat16) return level >= kTileLevel;
    return level >= kFloatTileLevel &&
           shape.queries * std::min(shape.window, shape.start + shape.queries / 2) >= kMeet * shape.keys;
}

int64_t blocks_of(int64_t queries) { return (queries + kQueries - 1) / kQueries; }

}  // namespace

bool attend_rows(Pool::Turn& pool, int level, const AttentionShape& shape, Rows<const float> q, Rows<const float> k,
                 Rows<const float> v, Rows<float> out, float* log_sums) {
    if (by_tiles(level, shape)) return attend_rows_by_tiles(pool, shape, q, k, v, out, log_sums);
    const int64_t blocks = blocks_of(shape.queries), size = shape.size;
    const Kernels& run = kernels_of(level);
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    const Workspace workspace(pool, (2 * size + kKeys) * kQueries);
    if (!workspace.ready()) return false;
    pool.share(shape.batch * shape.heads * blocks, [&](int64_t unit, int worker) {
        // the last blocks of a text see most: first, so that none of them is left to one thread at the end
        const int64_t block = blocks - 1 - unit / (shape.batch * shape.heads), pair = unit % (shape.batch * shape.heads);
        const int64_t b = pair / shape.heads, h = pair % shape.heads, first = block * kQueries;
        const Sight sight{shape.start + first, shape.window};
        run.forward(q.of(b, h) + first * q.row, q.row, std::min(kQueries, shape.queries - first), sight, size, scale,
                    k.of(b, h), k.row, v.of(b, h), v.row, out.of(b, h) + first * out.row, out.row,
                    log_sums ? log_sums + pair * shape.queries + first : nullptr, workspace.of(worker));
    });
    return true;
}

bool attend_rows(Pool::Turn& pool, const AttentionShape& shape, Rows<const float> q, Rows<const uint16_t> k,
                 Rows<const uint16_t> v, Rows<float> out) {
    return attend_rows_by_tiles(pool, shape, q, k, v, out);
}

bool attend_rows_gradient(Pool::Turn& pool, int level, const AttentionShape& shape, Rows<const float> q,
                          Rows<const float> k, Rows<const float> v, Rows<const float> out, const float* log_sums,
                          Rows<const float> dout, Rows<float> dq, Rows<float> dk, Rows<float> dv) {
    if (by_tiles(level, shape))
        return attend_rows_gradient_by_tiles(pool, shape, q, k, v, out, log_sums, dout, dq, dk, dv);
    const int64_t size = shape.size, width = (size + 15) / 16 * 16;  // whole vectors of every set
    const Kernels& run = kernels_of(level);
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    const int64_t sums = shape.keys * width;
    const Workspace workspace(pool, 2 * sums + (3 * size + 2 * width + 2 * kKeys) * kQueries);
    if (!workspace.ready()) return false;
    pool.share(shape.batch * shape.heads, [&](int64_t pair, int worker) {
        const int64_t b = pair / shape.heads, h = pair % shape.heads;
        float* dk_sums = workspace.of(worker);
        float* dv_sums = dk_sums + sums;
        std::memset(dk_sums, 0, 2 * sums * sizeof(float));
        for (int64_t first = 0; first < shape.queries; first += kQueries) {
            const Sight sight{shape.start + first, shape.window};
            run.backward(q.of(b, h) + first * q.row, q.row, std::min(kQueries, shape.queries - first), sight, size,
                         scale, k.of(b, h), k.row, v.of(b, h), v.row, out.of(b, h) + first * out.row, out.row,
                         log_sums + pair * shape.queries + first, dout.of(b, h) + first * dout.row, dout.row,
                         dq.of(b, h) + first * dq.row, dq.row, dk_sums, dv_sums, width, dv_sums + sums);
        }
        for (int64_t j = 0; j < shape.keys; ++j) {
            std::memcpy(dk.of(b, h) + j * dk.row, dk_sums + j * width, size * sizeof(float));
            std::memcpy(dv.of(b, h) + j * dv.row, dv_sums + j * width, size * sizeof(float));
        }
    });
    return true;
}
