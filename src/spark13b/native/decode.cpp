// One token for each of some texts, through all layers of the model: the decode step without an operator to dispatch.
//
// A plain C interface for ctypes; arrays are NumPy's, and stay theirs. The formulas are those of model/transformer.py,
// the rings those of model/kv_cache.py. Activations are float32, matrices of any type. kernels.h has the arithmetic, pool.h
// the threads, which share the rows of each product.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <vector>

#include "arithmetic.h"
#include "beside.h"
#include "levels.h"
#include "model.h"
#include "pool.h"
#include "ring.h"
#include "row_products.h"

namespace {

using row_products::Product;

// Rotate one head's row in place, (x, y) halves by cos and sin (size), the first half of sin negative; and scale it.
void turn(float* row, const float* cos, const float* sin, int64_t size, float scale) {
    const int64_t half = size / 2;
    for (int64_t d = 0; d < half; ++d) {
        const float x = row[d], y = row[d + half];
        row[d] = (x * cos[d] + y * sin[d]) * scale;
        row[d + half] = (y * cos[d + half] + x * sin[d + half]) * scale;
    }
}

}  // namespace

extern "C" {

EXPORTED int spark_level() { return best_level(); }
EXPORTED int spark_whole_numbers(int level) { return has_whole_numbers(level); }

// The compiler's name and version.
EXPORTED const char* spark_compiler() {
#ifdef __clang__
    return __VERSION__;
#else
    return "GCC " __VERSION__;
#endif
}

// One product of a step, for tests and measurements: y (texts, outputs) = x (texts, in) W^T + bias, or y += that. -> 0, 1 for
// an argument out of its range, 2 when there is no memory.
EXPORTED int spark_decode_product(const Matrix* w, const float* bias, const float* x, int64_t texts, int64_t in, int adds,
                                  float* y, int threads, int level, int whole_numbers) {
    if (texts < 1 || threads < 1 || level > best_level()) return 1;
    try {
        Pool::Turn pool(Pool::of_process(), threads);
        row_products::Inputs inputs(pool, level, whole_numbers != 0, texts, in);
        inputs.take(x, texts, in, {w});
        row_products::multiply(pool, inputs, {*w, bias, texts, in}, adds != 0, y);
        return 0;
    } catch (const std::bad_alloc&) {
        return 2;
    }
}

// matrices, vectors: see Parameters. cos, sin: (positions, D), the first half of sin negative. rings: of each text, of each
// layer, keys and values (H * slots, D) of `ring_type`, kFloat32 or kBfloat16; texts with the same rings, one after the other, are
// tokens of one text at positions one after the other. logits: (texts, vocabulary). whole_numbers: whether they are multiplied where
// the processor can. adapters: or null, with their scale in B.
// -> 0, 1 for an argument out of its range, 2 when there is no memory for the activations.
EXPORTED int spark_decode_step(const SparkShape* shape, const Matrix* matrices, const float* const* vectors,
                               const float* cos, const float* sin, const Adapters* adapters, int64_t texts,
                               int64_t slots, const int32_t* ids, const int32_t* positions, void* const* rings,
                               int32_t ring_type, float* logits, int threads, int level, int whole_numbers) {
    const int64_t hidden = shape->hidden, heads = shape->heads, mlp = shape->mlp, vocabulary = shape->vocabulary;
    if (texts < 1 || slots < 1 || threads < 1 || hidden < 1 || heads < 1 || hidden % heads || level > best_level())
        return 1;
    for (int64_t t = 0; t < texts; ++t)
        if (ids[t] < 0 || ids[t] >= vocabulary || positions[t] < 0 || positions[t] >= shape->positions) return 1;
    const int64_t size = hidden / heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    const Arithmetic& run = arithmetic(level);
    const Parameters weights = {matrices, vectors};

    Pool::Turn pool(Pool::of_process(), threads);
    std::vector<float> memory, all_scores;
    std::vector<int64_t> firsts;  // tokens that begin another text
    const int64_t room = slots + 16;  // of a thread's scores; vectors of up to 16 reach beyond the last slot
    const Adapters lora = adapters ? *adapters : Adapters{};
    std::optional<Beside> beside;
    std::optional<row_products::Inputs> inputs;
    try {
        beside.emplace(pool, level, lora, texts);
        inputs.emplace(pool, level, whole_numbers != 0, texts, std::max(hidden, mlp));
        memory.resize(texts * (6 * hidden + 2 * mlp));
        all_scores.resize(pool.workers() * room);
        for (int64_t t = 0; t < texts; ++t)
            if (t == 0 || rings[t * shape->layers * 2] != rings[(t - 1) * shape->layers * 2]) firsts.push_back(t);
        firsts.push_back(texts);
    } catch (const std::bad_alloc&) {
        return 2;
    }
    float* x = memory.data();  // the residual stream; then what is computed from it
    float *h = x + texts * hidden, *attended = h + texts * hidden;
    float* qkv[3] = {attended + texts * hidden, attended + 2 * texts * hidden, attended + 3 * texts * hidden};
    float *gate = attended + 4 * texts * hidden, *up = gate + texts * mlp;

    const auto norm = [&](const float* gamma, const float* beta) {
        row_products::each(pool, texts, [&](int64_t t, int) {
            run.layer_norm(x + t * hidden, gamma, beta, hidden, shape->epsilon, h + t * hidden);
        });
    };
    const auto multiply = [&](const Matrix& w, const float* bias, const float* from, int64_t in, bool adds, float* to) {
        inputs->take(from, texts, in, {&w});
        row_products::multiply(pool, *inputs, {w, bias, texts, in}, adds, to);
    };

    for (int64_t t = 0; t < texts; ++t) run.row(weights.embedding(), ids[t], hidden, x + t * hidden);
    for (int64_t number = 0; number < shape->layers; ++number) {
        const auto& [matrix, vector] = weights.layer(number);

        norm(vector.norm_gamma, vector.norm_beta);
        const Product products[3] = {{matrix.q, vector.q_bias, texts, hidden},
                                     {matrix.k, vector.k_bias, texts, hidden},
                                     {matrix.v, vector.v_bias, texts, hidden}};
        inputs->take(h, texts, hidden, {&matrix.q, &matrix.k, &matrix.v});
        beside->take(h, texts, hidden, number, {kQ, kK, kV});
        const int64_t until_k = products[0].count, until_v = until_k + products[1].count;
        pool.share(until_v + products[2].count, [&](int64_t piece, int) {
            const int which = (piece >= until_k) + (piece >= until_v);
            const int64_t part = piece - (which == 0 ? 0 : which == 1 ? until_k : until_v);
            const Product& of = products[which];
            inputs->multiply(of, false, qkv[which], of.begin(part), of.end(part));
            beside->add(kQ + which, qkv[which], hidden, of.begin(part), of.end(part));
        });
        pool.share((static_cast<int64_t>(firsts.size()) - 1) * heads, [&](int64_t unit, int worker) {
            const int64_t text = unit / heads, head = unit % heads;
            for (int64_t t = firsts[text]; t < firsts[text + 1]; ++t) {
                const int64_t position = positions[t], at = (t * heads + head) * size;
                void* const* ring = rings + (t * shape->layers + number) * 2;
                Ring keys(ring[0], ring_type, head, slots, size), values(ring[1], ring_type, head, slots, size);
                turn(qkv[0] + at, cos + position * size, sin + position * size, size, scale);
                turn(qkv[1] + at, cos + position * size, sin + position * size, size, 1.0f);
                keys.put(position, qkv[1] + at);
                values.put(position, qkv[2] + at);
                run.attend(qkv[0] + at, keys.rows(), values.rows(), ring_type, std::min(position + 1, slots), size,
                           all_scores.data() + worker * room, attended + at);
            }
        });
        multiply(matrix.out, vector.out_bias, attended, hidden, true, x);
        beside->take(attended, texts, hidden, number, {kOut});
        beside->add(kOut, x, hidden);

        norm(vector.mlp_norm_gamma, vector.mlp_norm_beta);
        const Product gates(matrix.gate, vector.gate_bias, texts, hidden);
        const Product values(matrix.up, vector.up_bias, texts, hidden);
        inputs->take(h, texts, hidden, {&matrix.gate, &matrix.up});
        beside->take(h, texts, hidden, number, {kGate, kUp});
        pool.share(gates.count, [&](int64_t piece, int) {
            const int64_t begin = gates.begin(piece), end = gates.end(piece);
            inputs->multiply(gates, false, gate, begin, end);
            inputs->multiply(values, false, up, begin, end);
            beside->add(kGate, gate, mlp, begin, end);
            beside->add(kUp, up, mlp, begin, end);
            for (int64_t t = 0; t < texts; ++t)
                run.gated_gelu(gate + t * mlp + begin, up + t * mlp + begin, end - begin);
        });
        multiply(matrix.down, vector.down_bias, gate, mlp, true, x);
        beside->take(gate, texts, mlp, number, {kDown});
        beside->add(kDown, x, hidden);
    }
    const float* const* last_norm = weights.last_norm(shape->layers);
    norm(last_norm[0], last_norm[1]);
    multiply(weights.embedding(), nullptr, h, hidden, false, logits);
    return 0;
}

}  // extern "C"
