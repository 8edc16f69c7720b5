// One token for each of some texts, through all layers of the model: the decode step without an operator to dispatch.
//
// A plain C interface for ctypes; arrays are NumPy's, and stay theirs. The formulas are those of model/transformer.py,
// the rings those of model/kv_cache.py. Everything is float32. kernels.h has the arithmetic, pool.h the threads, which share
// the rows of each product.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace {

#include "pool.h"

struct Kernels {
    void (*linear)(const float* w, const float* bias, const float* x, int64_t texts, int64_t in, bool adds, float* y,
                   int64_t y_stride, int64_t begin, int64_t end);
    void (*gated_gelu)(float* gate, const float* value, int64_t count);
    void (*attend)(const float* q, const float* keys, const float* values, int64_t count, int64_t size, float* scores,
                   float* out);
    void (*layer_norm)(const float* x, const float* gamma, const float* beta, int64_t size, float epsilon, float* out);
};

// What every processor of the architecture can: SSE2, or NEON.
namespace baseline {
#define KERNEL
#define LANES 4
#include "kernels.h"
#undef KERNEL
#undef LANES
}  // namespace baseline

#ifdef __x86_64__
namespace avx2 {
#define KERNEL __attribute__((target("avx2,fma")))
#define LANES 8
#include "kernels.h"
#undef KERNEL
#undef LANES
}  // namespace avx2

namespace avx512 {
#define KERNEL __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#define LANES 16
#include "kernels.h"
#undef KERNEL
#undef LANES
}  // namespace avx512
#endif

const Kernels& kernels_of(int level) {
#ifdef __x86_64__
    if (level >= 2) return avx512::kernels;
    if (level == 1) return avx2::kernels;
#endif
    (void)level;
    return baseline::kernels;
}

// The weights of a layer, in the order in which a checkpoint has them (model/names.py).
struct Layer {
    const float *norm_gamma, *norm_beta;
    const float *q, *q_bias, *k, *k_bias, *v, *v_bias, *out, *out_bias;
    const float *mlp_norm_gamma, *mlp_norm_beta;
    const float *gate, *gate_bias, *up, *up_bias, *down, *down_bias;
};
static_assert(sizeof(Layer) == 18 * sizeof(float*), "read from an array of pointers");

// Outputs of a product that make one piece of work: 128 KB of weights, which a core reads in about 10 us.
struct Pieces {
    int64_t outputs, size, count;

    Pieces(int64_t outputs, int64_t inputs)
        : outputs(outputs),
          size(std::max({int64_t{1}, (1 << 15) / inputs, outputs >> 19})),
          count((outputs + size - 1) / size) {}

    int64_t begin(int64_t piece) const { return piece * size; }
    int64_t end(int64_t piece) const { return std::min(outputs, (piece + 1) * size); }
};

}  // namespace

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

struct SparkShape {
    int64_t layers, hidden, heads, mlp, vocabulary, positions;  // mlp: width of gate and value; positions: rows of cos
    float epsilon;
};

// The best set of instructions here: 0 baseline, 1 AVX2, 2 AVX-512.
EXPORTED int spark_level() {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

// The compiler's name and version.
EXPORTED const char* spark_compiler() {
#ifdef __clang__
    return __VERSION__;
#else
    return "GCC " __VERSION__;
#endif
}

// weights: the embedding, 18 of each layer, gamma and beta of the last norm. cos, sin: (positions, D), the first half of
// sin negative. rings: of each text, of each layer, keys and values (H * slots, D). logits: (texts, vocabulary).
// -> 0, 1 for an argument out of its range, 2 when there is no memory for the activations.
EXPORTED int spark_decode_step(const SparkShape* shape, const float* const* weights, const float* cos,
                               const float* sin, int64_t texts, int64_t slots, const int32_t* ids,
                               const int32_t* positions, float* const* rings, float* logits, int threads, int level) {
    const int64_t hidden = shape->hidden, heads = shape->heads, mlp = shape->mlp, vocabulary = shape->vocabulary;
    if (texts < 1 || slots < 1 || threads < 1 || hidden < 1 || heads < 1 || hidden % heads || level > spark_level())
        return 1;
    for (int64_t t = 0; t < texts; ++t)
        if (ids[t] < 0 || ids[t] >= vocabulary || positions[t] < 0 || positions[t] >= shape->positions) return 1;
    const int64_t size = hidden / heads, half = size / 2;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    const Kernels& run = kernels_of(level);
    const float* table = weights[0];
    const float* const* last_norm = weights + 1 + 18 * shape->layers;

    const Pieces of_hidden(hidden, hidden), of_mlp(mlp, hidden), of_down(hidden, mlp), of_table(vocabulary, hidden);

    Pool::Turn pool(Pool::of_process(), threads);
    std::vector<float> memory, all_scores;
    const int64_t room = slots + 16;  // of a thread's scores; vectors of up to 16 reach beyond the last slot
    try {
        memory.resize(texts * (6 * hidden + 2 * mlp));
        all_scores.resize(pool.workers() * room);
    } catch (const std::bad_alloc&) {
        return 2;
    }
    float* x = memory.data();  // the residual stream; then what is computed from it
    float *h = x + texts * hidden, *attended = h + texts * hidden;
    float* qkv[3] = {attended + texts * hidden, attended + 2 * texts * hidden, attended + 3 * texts * hidden};
    float *gate = attended + 4 * texts * hidden, *up = gate + texts * mlp;

    const auto norm = [&](const float* gamma, const float* beta) {
        for (int64_t t = 0; t < texts; ++t)
            run.layer_norm(x + t * hidden, gamma, beta, hidden, shape->epsilon, h + t * hidden);
    };

    for (int64_t t = 0; t < texts; ++t) std::memcpy(x + t * hidden, table + ids[t] * hidden, hidden * sizeof(float));
    for (int64_t number = 0; number < shape->layers; ++number) {
        Layer layer;
        std::memcpy(&layer, weights + 1 + 18 * number, sizeof layer);

        norm(layer.norm_gamma, layer.norm_beta);
        const float* matrices[3] = {layer.q, layer.k, layer.v};
        const float* biases[3] = {layer.q_bias, layer.k_bias, layer.v_bias};
        pool.share(3 * of_hidden.count, [&](int64_t piece, int) {
            const int64_t which = piece / of_hidden.count, part = piece % of_hidden.count;
            run.linear(matrices[which], biases[which], h, texts, hidden, false, qkv[which], hidden,
                       of_hidden.begin(part), of_hidden.end(part));
        });
        pool.share(texts * heads, [&](int64_t unit, int worker) {
            const int64_t t = unit / heads, head = unit % heads, position = positions[t];
            float* const* ring = rings + (t * shape->layers + number) * 2;
            float *keys = ring[0] + head * slots * size, *values = ring[1] + head * slots * size;
            float *q = qkv[0] + unit * size, *k = qkv[1] + unit * size, *v = qkv[2] + unit * size;
            const float *c = cos + position * size, *s = sin + position * size;
            float *key = keys + position % slots * size, *turned = attended + unit * size;
            for (int64_t d = 0; d < size; ++d) {
                const int64_t other = d < half ? d + half : d - half;
                turned[d] = (q[d] * c[d] + q[other] * s[d]) * scale;
                key[d] = k[d] * c[d] + k[other] * s[d];
            }
            std::memcpy(q, turned, size * sizeof(float));  // for the attention's result takes that place
            std::memcpy(values + position % slots * size, v, size * sizeof(float));
            run.attend(q, keys, values, std::min(position + 1, slots), size, all_scores.data() + worker * room,
                       attended + unit * size);
        });
        pool.share(of_hidden.count, [&](int64_t piece, int) {
            run.linear(layer.out, layer.out_bias, attended, texts, hidden, true, x, hidden, of_hidden.begin(piece),
                       of_hidden.end(piece));
        });

        norm(layer.mlp_norm_gamma, layer.mlp_norm_beta);
        pool.share(of_mlp.count, [&](int64_t piece, int) {
            const int64_t begin = of_mlp.begin(piece), end = of_mlp.end(piece);
            run.linear(layer.gate, layer.gate_bias, h, texts, hidden, false, gate, mlp, begin, end);
            run.linear(layer.up, layer.up_bias, h, texts, hidden, false, up, mlp, begin, end);
            for (int64_t t = 0; t < texts; ++t)
                run.gated_gelu(gate + t * mlp + begin, up + t * mlp + begin, end - begin);
        });
        pool.share(of_down.count, [&](int64_t piece, int) {
            run.linear(layer.down, layer.down_bias, gate, texts, mlp, true, x, hidden, of_down.begin(piece),
                       of_down.end(piece));
        });
    }
    norm(last_norm[0], last_norm[1]);
    pool.share(of_table.count, [&](int64_t piece, int) {
        run.linear(table, nullptr, h, texts, hidden, false, logits, vocabulary, of_table.begin(piece),
                   of_table.end(piece));
    });
    return 0;
}

}  // extern "C"
