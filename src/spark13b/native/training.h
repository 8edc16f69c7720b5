// The loss of a batch and the gradients of all that is trained: the whole chain rule in one call.
#pragma once

#include <cstdint>

#include "dropout.h"
#include "model.h"
#include "pool.h"

// Where a layer's arrays are in a checkpoint's order: each weight has its bias behind it, and each gamma its beta.
enum Place { kNorm = 0, kMlpNorm = 10, kArrays = 18 };
constexpr int place_of(int linear) { return 2 + 2 * linear + (linear >= kGate ? 2 : 0); }

struct TrainingShape {
    int64_t batch, tokens;                            // texts, tokens of each
    int64_t layers, hidden, heads, mlp, vocabulary;   // mlp: width of gate and value
    int64_t window;
    float epsilon;
    int32_t type;  // of both sides of products and what is kept of them: kFloat32 or kBfloat16; sums are float32
    int32_t bias_type;  // kFloat32 or kBfloat16
    bool recompute;  // keep nothing of a layer but its input

    bool valid() const;
};

// What a step computes with: the embedding (V, C) and 7 matrices of each layer; 11 vectors of each layer and 2 of the last
// norm, each in a checkpoint's order. Norms are float32. What is trained of it must be float32, all of it.
struct TrainingWeights {
    const Matrix* matrices;
    const void* const* vectors;
};

// With adapters they alone are trained, and weights stay as they are; without, all weights are trained. cos, sin: (tokens, D), the first half of sin negative. ids, targets, mask: (batch, tokens). `loss[0]` gets factor times the
// sum of mask times the negative log likelihood, `loss[1]` the sum of mask where the target is the likeliest. `gradients`
// of loss[0], of all weights in a checkpoint's order or, with adapters, as their `values`; they are written unless they are null.
// `dropout`: null for none, as without gradients.
// -> 0; 1 for an argument out of its range; 2 when memory ends; 3 when a product fails.
int train_batch(Pool::Turn& pool, int level, const TrainingShape& shape, const TrainingWeights& weights,
                const Adapters& adapters, const float* cos, const float* sin, const int32_t* ids,
                const int32_t* targets, const float* mask, float factor, float* loss, float* const* gradients,
                const Dropout* dropout);
