// MindSpore's way in: functions for ops.Custom with func_type "aot". Its tensors are contiguous and on the host; each
// function gets the addresses and shapes of its inputs and then of its outputs, and an error for MindSpore is any result
// but 0: 1 for an argument out of its range, 2 when memory ends, 3 when a product fails (failures.py tells them). The first
// input is int64 numbers, of which the first two are threads and level.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "attention.h"
#include "levels.h"
#include "model.h"
#include "optimizer.h"
#include "pool.h"
#include "training.h"

namespace {

struct Call {
    void** data;
    int64_t** shapes;
    const int64_t* numbers;

    const float* floats(int at) const { return static_cast<const float*>(data[at]); }
    float* to(int at) const { return static_cast<float*>(data[at]); }
    int threads() const { return static_cast<int>(numbers[0]); }
    int level() const { return static_cast<int>(numbers[1]); }
};

float float_of(int64_t bits) {
    const auto narrow = static_cast<uint32_t>(bits);
    float value;
    std::memcpy(&value, &narrow, sizeof value);
    return value;
}

Call call_of(void** data, int64_t** shapes) { return {data, shapes, static_cast<const int64_t*>(data[0])}; }

// numbers[2] is the window, numbers[3] the type of products (weights.h); q is tensor 1, (B, H, T, D)
AttentionShape attention_of(const Call& call) {
    const int64_t* q = call.shapes[1];
    return {q[0], q[1], q[3], q[2], q[2], 0, call.numbers[2], static_cast<int32_t>(call.numbers[3])};
}

template <class Number>
Rows<Number> rows_of(Number* data, const AttentionShape& shape) {
    return {data, shape.heads * shape.queries * shape.size, shape.queries * shape.size, shape.size};
}

// numbers: threads, level, heads, window, type, recompute, the bits of epsilon, the layers, the types of linear layers'
// parameters and of the embedding or, of weights that are `elsewhere`, the addresses of matrices and vectors (see Parameters);
// with adapters also their rank, the bits of their scale, and for each layer a number
// whose bits are the linear layers that have one. Tensors behind them: ids, targets, mask, factor, cos, sin (of as many
// positions or more), the weights unless they are elsewhere, A and B of each adapter; then the two sums of train_batch and, with
// `differentiates`, the gradients: of all adapters or, where there are none, of all weights. With dropout there is one more
// tensor of int64 before the two sums: key and first row, the thresholds of rows and of adapters' inputs, the bits of their
// scales, and the places (see Dropout).
int train(int count, void** data, int64_t** shapes, bool elsewhere, bool differentiates) try {
    constexpr int kBefore = 7, kNumbers = 10;
    const Call call = call_of(data, shapes);
    const int64_t numbers = shapes[0][0], layers = numbers < kNumbers ? 0 : call.numbers[7];
    const bool adapts = numbers > kNumbers;
    if (elsewhere && differentiates && !adapts) return 1;
    if (layers < 1 || layers > count || (adapts && numbers != kNumbers + 2 + layers)) return 1;
    const int arrays = static_cast<int>(3 + kArrays * layers), weights = elsewhere ? 0 : arrays;
    std::vector<int> places;  // of A and of B of each linear layer among the adapters, -1: it has none
    int values = 0;
    for (int64_t l = 0; adapts && l < layers; ++l)
        for (int i = 0; i < 2 * kLinears; ++i)
            places.push_back(call.numbers[kNumbers + 2 + l] >> (i / 2) & 1 ? values++ : -1);
    const int trained = !differentiates ? 0 : adapts ? values : weights;
    int sums = kBefore + weights + values;
    Dropout dropout{};
    const bool drops = differentiates && count == sums + 2 + trained;
    if (drops) {
        constexpr int64_t kSettings = 6;
        if (shapes[sums][0] != kSettings + 1 + Dropout::kPlaces * layers) return 1;
        const auto* given = static_cast<const int64_t*>(data[sums++]);
        dropout = {static_cast<uint32_t>(given[0]), static_cast<uint32_t>(given[1]), static_cast<int32_t>(given[2]),
                   static_cast<int32_t>(given[3]),  float_of(given[4]),              float_of(given[5]),
                   given + kSettings};
    }
    if (count != sums + 1 + trained || call.threads() < 1 || shapes[5][0] < shapes[1][1] || (adapts && values == 0))
        return 1;
    TrainingShape shape{};
    shape.batch = shapes[1][0];
    shape.tokens = shapes[1][1];
    shape.layers = layers;
    shape.heads = call.numbers[2];
    shape.window = call.numbers[3];
    shape.type = static_cast<int32_t>(call.numbers[4]);
    shape.recompute = call.numbers[5] != 0;
    shape.epsilon = float_of(call.numbers[6]);
    std::vector<Matrix> own_matrices;
    std::vector<const void*> own_vectors;
    TrainingWeights base{};
    if (elsewhere) {
        base = {reinterpret_cast<const Matrix*>(call.numbers[8]), reinterpret_cast<const void* const*>(call.numbers[9])};
        shape.bias_type = kFloat32;
    } else {
        shape.bias_type = static_cast<int32_t>(call.numbers[8]);
        for (int at = 0; at < arrays; ++at) {
            const int place = (at - 1) % kArrays;
            const bool is_matrix = at == 0 || (at < arrays - 2 && place >= 2 && place % 2 == 0 && place != kMlpNorm);
            const auto type = static_cast<int32_t>(call.numbers[at == 0 ? 9 : 8]);
            if (is_matrix)
                own_matrices.push_back({data[kBefore + at], nullptr, type, 0, shapes[kBefore + at][0]});
            else
                own_vectors.push_back(data[kBefore + at]);
        }
        base = {own_matrices.data(), own_vectors.data()};
    }
    shape.vocabulary = base.matrices[0].outputs;
    shape.hidden = base.matrices[1].outputs;
    shape.mlp = base.matrices[1 + kGate].outputs;
    Adapters adapters;
    std::vector<float*> of_adapters, gradients;
    const auto tensors_at = [&](int first) {
        std::vector<float*> found;
        for (const int place : places) found.push_back(place < 0 ? nullptr : call.to(first + place));
        return found;
    };
    if (adapts) {
        of_adapters = tensors_at(kBefore + weights);
        adapters = {of_adapters.data(), call.numbers[kNumbers], float_of(call.numbers[kNumbers + 1]),
                    dropout.adapter_threshold > 0};
    }
    if (differentiates && adapts) gradients = tensors_at(sums + 1);
    for (int i = 0; !adapts && i < trained; ++i) gradients.push_back(call.to(sums + 1 + i));
    Pool::Turn pool(Pool::of_process(), call.threads());
    return train_batch(pool, call.level(), shape, base, adapters, call.floats(5), call.floats(6),
                       static_cast<const int32_t*>(data[1]), static_cast<const int32_t*>(data[2]), call.floats(3),
                       *call.floats(4), call.to(sums), differentiates ? gradients.data() : nullptr,
                       drops ? &dropout : nullptr);
} catch (const std::bad_alloc&) {
    return 2;
}

}  // namespace

extern "C" {

// numbers, q, k, v -> out, log_sums
EXPORTED int spark_attention(int, void** data, int*, int64_t** shapes, const char**, void*, void*) try {
    const Call call = call_of(data, shapes);
    const AttentionShape shape = attention_of(call);
    if (!shape.valid() || call.threads() < 1) return 1;
    Pool::Turn pool(Pool::of_process(), call.threads());
    return attend_rows(pool, call.level(), shape, rows_of(call.floats(1), shape), rows_of(call.floats(2), shape),
                       rows_of(call.floats(3), shape), rows_of(call.to(4), shape), call.to(5))
               ? 0
               : 2;
} catch (const std::bad_alloc&) {
    return 2;
}

// numbers, q, k, v, out, log_sums, dout -> dq, dk, dv
EXPORTED int spark_attention_gradient(int, void** data, int*, int64_t** shapes, const char**, void*, void*) try {
    const Call call = call_of(data, shapes);
    const AttentionShape shape = attention_of(call);
    if (!shape.valid() || call.threads() < 1) return 1;
    Pool::Turn pool(Pool::of_process(), call.threads());
    return attend_rows_gradient(pool, call.level(), shape, rows_of(call.floats(1), shape),
                                rows_of(call.floats(2), shape), rows_of(call.floats(3), shape),
                                rows_of(call.floats(4), shape), call.floats(5), rows_of(call.floats(6), shape),
                                rows_of(call.to(7), shape), rows_of(call.to(8), shape), rows_of(call.to(9), shape))
               ? 0
               : 2;
} catch (const std::bad_alloc&) {
    return 2;
}

EXPORTED int spark_loss(int count, void** data, int*, int64_t** shapes, const char**, void*, void*) {
    return train(count, data, shapes, false, false);
}

EXPORTED int spark_loss_and_gradients(int count, void** data, int*, int64_t** shapes, const char**, void*, void*) {
    return train(count, data, shapes, false, true);
}

// The same with weights that are no tensors.
EXPORTED int spark_loss_elsewhere(int count, void** data, int*, int64_t** shapes, const char**, void*, void*) {
    return train(count, data, shapes, true, false);
}

EXPORTED int spark_loss_and_gradients_elsewhere(int count, void** data, int*, int64_t** shapes, const char**, void*,
                                                void*) {
    return train(count, data, shapes, true, true);
}

// numbers: threads, level, the bits of beta1, beta2, epsilon and of the norm to clip to (0: none), whether gradients that
// are not finite change nothing, then for each parameter whether it decays. Tensors behind them: rate, decay and loss scale,
// (1,) each; parameters, m, v, all written in place; gradients. -> the norm of gradients / scale
EXPORTED int spark_update(int count, void** data, int* sizes, int64_t** shapes, const char**, void*, void*) try {
    const Call call = call_of(data, shapes);
    const int weights = (count - 5) / 4;
    if (weights < 1 || count != 4 * weights + 5 || call.threads() < 1 || call.level() < 0 || call.level() > best_level())
        return 1;
    const float scale = *call.floats(3), clip = float_of(call.numbers[5]);
    std::vector<Updated> all;
    for (int at = 0; at < weights; ++at) {
        int64_t numbers = 1;
        for (int axis = 0; axis < sizes[4 + at]; ++axis) numbers *= shapes[4 + at][axis];
        all.push_back({call.to(4 + at), call.to(4 + weights + at), call.to(4 + 2 * weights + at),
                       call.floats(4 + 3 * weights + at), numbers, call.numbers[7 + at] != 0});
    }
    Pool::Turn pool(Pool::of_process(), call.threads());
    const float norm = static_cast<float>(norm_of(pool, call.level(), all) / scale);
    *call.to(count - 1) = norm;
    if (call.numbers[6] != 0 && !std::isfinite(norm)) return 0;
    AdamNumbers adam{*call.floats(1), 1.0f / scale, float_of(call.numbers[2]), float_of(call.numbers[3]),
                     float_of(call.numbers[4])};
    if (clip > 0.0f) adam.factor *= clip / (std::fmax(norm, clip) + 1e-6f);
    update_weights(pool, call.level(), all, adam, *call.floats(2));
    return 0;
} catch (const std::bad_alloc&) {
    return 2;
}

}  // extern "C"
