// A model's shape and weights as the C interface gets them; library.py makes them.
#pragma once

#include <cstdint>

#include "weights.h"

#define EXPORTED __attribute__((visibility("default")))

struct SparkShape {
    int64_t layers, hidden, heads, mlp, vocabulary, positions;  // mlp: width of gate and value; positions: rows of cos
    float epsilon;
};

// The weights of a layer. Matrices and vectors come in two arrays, each in a checkpoint's order (model/names.py).
struct Layer {
    struct Matrices {
        Matrix q, k, v, out, gate, up, down;
    };
    struct Vectors {
        const float *norm_gamma, *norm_beta;
        const float *q_bias, *k_bias, *v_bias, *out_bias;
        const float *mlp_norm_gamma, *mlp_norm_beta;
        const float *gate_bias, *up_bias, *down_bias;
    };
    const Matrices& matrix;
    const Vectors& vector;
};

// The linear layers of a layer, in a checkpoint's order.
enum LinearName { kQ, kK, kV, kOut, kGate, kUp, kDown, kLinears };

// Low-rank adapters beside linear layers, y += (x A^T scale) B^T as in model/adapter.py. `values`: A (rank, inputs) and
// B (outputs, rank) of the linear layers of each layer in a checkpoint's order, null where there is none; null: there are none.
struct Adapters {
    const float* const* values = nullptr;
    int64_t rank = 0;
    float scale = 1.0f;  // 1 where B has it already
    bool drops = false;  // in training: some of their inputs

    // A and B of a linear layer, null where it has none.
    const float* a(int64_t layer, int linear) const { return values ? values[(layer * kLinears + linear) * 2] : nullptr; }
    const float* b(int64_t layer, int linear) const { return values ? values[(layer * kLinears + linear) * 2 + 1] : nullptr; }
};

// All weights: `matrices` are the embedding and 7 of each layer, `vectors` 11 of each layer, gamma and beta of the last norm.
struct Parameters {
    const Matrix* matrices;
    const float* const* vectors;

    const Matrix& embedding() const { return matrices[0]; }
    Layer layer(int64_t number) const {
        return {reinterpret_cast<const Layer::Matrices*>(matrices + 1)[number],
                reinterpret_cast<const Layer::Vectors*>(vectors)[number]};
    }
    const float* const* last_norm(int64_t layers) const { return vectors + 11 * layers; }
};
static_assert(sizeof(Layer::Matrices) == 7 * sizeof(Matrix) && sizeof(Layer::Vectors) == 11 * sizeof(float*),
              "read from arrays");
