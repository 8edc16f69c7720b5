// attention.h's two by AMX (tiles.h), where levels.h finds it. -> false when there is no memory.
#pragma once

#include "attention.h"

bool attend_rows_by_tiles(Pool::Turn& pool, const AttentionShape& shape, Rows<const float> q, Rows<const float> k,
                          Rows<const float> v, Rows<float> out, float* log_sums);

// Of keys and values that are bfloat16 where they lie.
bool attend_rows_by_tiles(Pool::Turn& pool, const AttentionShape& shape, Rows<const float> q, Rows<const uint16_t> k,
                          Rows<const uint16_t> v, Rows<float> out);

bool attend_rows_gradient_by_tiles(Pool::Turn& pool, const AttentionShape& shape, Rows<const float> q,
                                   Rows<const float> k, Rows<const float> v, Rows<const float> out,
                                   const float* log_sums, Rows<const float> dout, Rows<float> dq, Rows<float> dk,
                                   Rows<float> dv);
