// The loss of a batch and the gradients of all that is trained: the whole chain rule in one call.
#pragma once

#include <cstdint>

#include "pool.h"

// A layer's linear layers, and where its arrays are in a checkpoint's order: each weight has its bias behind it, and each
// gamma its beta.
enum LinearName { kQ, kK, kV, kOut, kGate, kUp, kDown, kLinears };
enum Place { kNorm = 0, kMlpNorm = 10, kArrays = 18 };
constexpr int place_of(int linear) { return 2 + 2 * linear + (linear >= kGate ? 2 : 0); }

struct TrainingShape {
    int64_t batch, tokens;                            // texts, tokens of each
    int64_t layers, hidden, heads, mlp, vocabulary;   // mlp: width of gate and value
    int64_t window;
    float epsilon;
    int32_t type;  // of both sides of products and what is kept of them: kFloat32 or kBfloat16; sums are float32
    int32_t linear_type, embedding_type;  // of weights and biases, and of the embedding; what is trained is float32
    bool recompute;  // keep nothing of a layer but its input

    bool valid() const;
};

// Low-rank adapters, see linear.h. `values`: A and B of the linear layers of each layer, null where there is none; with
// adapters they alone are trained, and weights stay as they are. Null: there are none, and all weights are trained.
struct Adapters {
    const float* const* values = nullptr;
    int64_t rank = 0;
    float scale = 1.0f;
};

// weights: the embedding (V, C), 18 arrays of each layer and 2 of the last norm, in a checkpoint's order; norms float32.
// cos, sin: (tokens, D), the first half of sin negative. ids, targets, mask: (batch, tokens). `loss[0]` gets factor times the
// sum of mask times the negative log likelihood, `loss[1]` the sum of mask where the target is the likeliest. `gradients`
// of loss[0], as `weights` or, with adapters, as their `values`; they are written unless they are null.
// -> 0; 1 for an argument out of its range; 2 when memory ends; 3 when a product fails.
int train_batch(Pool::Turn& pool, int level, const TrainingShape& shape, const void* const* weights,
                const Adapters& adapters, const float* cos, const float* sin, const int32_t* ids,
                const int32_t* targets, const float* mask, float factor, float* loss, float* const* gradients);
