// Sliding-window attention over rows of a text, with its gradient; never more than a tile of scores in memory.
//
// Query t stands at position start + t of the keys, and sees key j when start + t - window < j <= start + t. Rows may lie
// anywhere: a whole text's (T, H*D) as the products leave them, or one head after the other.
#pragma once

#include <cstdint>

#include "pool.h"
#include "weights.h"

struct AttentionShape {
    int64_t batch, heads, size;  // texts, heads of each, numbers of a head's row
    int64_t queries, keys;       // rows of a text and head: T and S
    int64_t start, window;       // position of the first query among the keys, with start + T <= S; both count from 1 key
    int32_t type = kFloat32;     // kBfloat16: the sides of products may be rounded to it

    // Whether everything is in its range.
    bool valid() const {
        return batch > 0 && heads > 0 && size > 0 && queries > 0 && start >= 0 && window > 0 && start + queries <= keys &&
               (type == kFloat32 || type == kBfloat16);
    }
};

// Where the row (text b, head h, token t) begins: data + b batch + h head + t row, strides in numbers; its D numbers are
// contiguous.
template <class Number>
struct Rows {
    Number* data;
    int64_t batch, head, row;

    Number* of(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

// out = softmax(q k^T / sqrt(D)) v. `log_sums` (batch, heads, queries), or null: the logarithm of each query's sum of
// exponentials, which the gradient needs. All are float32. False when there is no memory.
bool attend_rows(Pool::Turn& pool, int level, const AttentionShape& shape, Rows<const float> q, Rows<const float> k,
                 Rows<const float> v, Rows<float> out, float* log_sums);

// The same with keys and values that are bfloat16 where they lie, from kTileLevel (levels.h) on.
bool attend_rows(Pool::Turn& pool, const AttentionShape& shape, Rows<const float> q, Rows<const uint16_t> k,
                 Rows<const uint16_t> v, Rows<float> out);

// The gradients dq, dk, dv for that of `out`; every number of them is written.
bool attend_rows_gradient(Pool::Turn& pool, int level, const AttentionShape& shape, Rows<const float> q,
                          Rows<const float> k, Rows<const float> v, Rows<const float> out, const float* log_sums,
                          Rows<const float> dout, Rows<float> dq, Rows<float> dk, Rows<float> dv);
