// A training step's forward and backward pass. Products are those of products.h, attention is attention.h's, and what is
// between them is computed row by row (training_kernels.h), in pieces of rows that threads share.
//
// Sums over rows, of biases and norms, are made of each piece's own sum, added in the order of the pieces: numbers do not
// depend on threads.

#include "training.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "attention.h"
#include "levels.h"
#include "memory.h"
#include "products.h"

namespace {

struct Kernels {
    void (*convert[2])(const float* from, int64_t count, void* to);  // by Type, as all pairs here
    void (*norm[2])(const float* x, int64_t rows, int64_t width, const float* gamma, const float* beta, float epsilon,
                    void* out);
    void (*norm_gradient)(const float* x, const float* dh, int64_t rows, int64_t width, const float* gamma,
                          float epsilon, float* dx, float* dgamma, float* dbeta);
    void (*turn)(float* row, int64_t heads, int64_t size, const float* cos, const float* sin, bool back);
    void (*gated[2])(const void* gate, const void* up, int64_t count, void* out);
    void (*gated_gradient[2])(const void* gate, const void* up, int64_t rows, int64_t width, void* change,
                              void* up_change, void* out, float* sums, float* up_sums);
    void (*add_rows)(const float* from, int64_t rows, int64_t width, int64_t stride, float* sums);
    float (*score[2])(float* logits, int64_t width, int64_t target, float weight, float* hit, bool wants_change);
};

}  // namespace

#define KERNELS_FILE "training_kernels.h"
#include "each_level.h"

namespace {

constexpr int64_t kRows = 32;               // of a piece between products
constexpr int64_t kColumns = 256;           // of a piece of sums over rows
constexpr int64_t kLogits = 16 * 1024 * 1024;  // that are in memory at once: 64 MB

// Numbers of a Type.
void* take(Arena& arena, int64_t count, int32_t type) { return arena.take<char>(count * (type == kBfloat16 ? 2 : 4)); }

// One caller at a time has the pool, and with it this.
char* memory_of(size_t size) {
    static KeptMemory* memory = new KeptMemory;
    if (char* found = memory->of(size)) return found;
    throw std::bad_alloc();
}

// A layer's arrays in a checkpoint's order.
enum Place { kNorm, kNormBeta, kQ, kQBias, kK, kKBias, kV, kVBias, kOut, kOutBias, kMlpNorm, kMlpNormBeta, kGate,
             kGateBias, kUp, kUpBias, kDown, kDownBias, kArrays };
constexpr Place kMatrices[] = {kQ, kK, kV, kOut, kGate, kUp, kDown};

// What a layer's forward pass leaves for its backward pass. Rows are (N, C), those of gate and up (N, F).
struct Kept {
    float *x, *q, *k, *v, *attended, *log_sums, *middle;  // `middle`: behind attention; q and k rotated
    void *gate, *up;                                      // of the products' type
    const void* matrices[kArrays];                        // weights in the products' type
};

class Failure {};  // of a product

class Training {
  public:
    Training(Pool::Turn& pool, int level, const TrainingShape& shape, const float* const* weights, const float* cos,
             const float* sin, bool differentiates)
        : pool_(pool),
          run_(kernels_of(level)),
          level_(level),
          shape_(shape),
          weights_(weights),
          cos_(cos),
          sin_(sin),
          differentiates_(differentiates),
          count_(shape.batch * shape.tokens),
          pieces_((count_ + kRows - 1) / kRows),
          logit_rows_(std::clamp<int64_t>(kLogits / shape.vocabulary, 1, count_)) {
        Arena measured(nullptr);
        lay_out(measured);
        Arena arena(memory_of(measured.used()));
        lay_out(arena);
        if (shape.type == kBfloat16) narrow_weights();
    }

    void run(const int32_t* ids, const int32_t* targets, const float* mask, float factor, float* loss,
             float* const* gradients) {
        const int64_t hidden = shape_.hidden;
        pool_.share(pieces_, [&](int64_t piece, int) {
            for (int64_t n = first(piece); n < last(piece); ++n)
                std::memcpy(kept_[0].x + n * hidden, weights_[0] + ids[n] * hidden, hidden * sizeof(float));
        });
        for (int64_t l = 0; l < shape_.layers; ++l) forward(l, l + 1 < shape_.layers ? kept_[l + 1].x : final_);
        score_all(targets, mask, factor, loss, gradients);
        if (!gradients) return;
        float* const* last_norm = gradients + 1 + kArrays * shape_.layers;
        std::memset(change_, 0, count_ * hidden * sizeof(float));
        norm_gradient(final_, weights_[1 + kArrays * shape_.layers], last_norm[0], last_norm[1]);
        for (int64_t l = shape_.layers - 1; l >= 0; --l) {
            if (shape_.recompute && l + 1 < shape_.layers) forward(l, nullptr);  // the last one's are still there
            backward(l, gradients + 1 + kArrays * l);
        }
        const int64_t parts = (hidden + kColumns - 1) / kColumns;
        pool_.share(parts, [&](int64_t part, int) {
            const int64_t begin = part * kColumns, width = std::min(kColumns, hidden - begin);
            for (int64_t n = 0; n < count_; ++n)
                run_.add_rows(change_ + n * hidden + begin, 1, width, 0, gradients[0] + ids[n] * hidden + begin);
        });
    }

  private:
    void lay_out(Arena& arena) {
        const int64_t hidden = shape_.hidden, mlp = shape_.mlp, wide = count_ * hidden, type = shape_.type;
        kept_.assign(shape_.layers, Kept{});
        for (int64_t l = 0; l < shape_.layers; ++l) {
            Kept& kept = kept_[l];
            if (shares_layers() && l > 0) {
                kept = kept_[0];
                kept.x = differentiates_ ? arena.take<float>(wide) : kept_[l % 2].x;
            }
            if (!shares_layers() || l == 0) {
                for (float** rows : {&kept.x, &kept.q, &kept.k, &kept.v, &kept.attended, &kept.middle})
                    *rows = arena.take<float>(wide);
                kept.log_sums = arena.take<float>(count_ * shape_.heads);
                kept.gate = take(arena, count_ * mlp, type);
                kept.up = take(arena, count_ * mlp, type);
            }
            if (!differentiates_ && l == 1) kept.x = arena.take<float>(wide);  // two that take turns
        }
        for (int64_t l = 0; l < shape_.layers; ++l)
            for (const Place place : kMatrices)
                kept_[l].matrices[place] = type == kBfloat16 ? take(arena, size_of(place), type) : weight(l, place);
        table_ = type == kBfloat16 ? take(arena, shape_.vocabulary * hidden, type) : weights_[0];
        final_ = arena.take<float>(wide);
        h_ = take(arena, wide, type);
        act_ = take(arena, count_ * mlp, type);
        logits_ = arena.take<float>(logit_rows_ * shape_.vocabulary);
        losses_ = arena.take<float>(count_);
        hits_ = arena.take<float>(count_);
        for (void*& narrow : narrow_) narrow = type == kBfloat16 ? take(arena, wide, type) : nullptr;
        if (!differentiates_) return;
        for (float** rows : {&change_, &dh_, &dq_, &dk_, &dv_}) *rows = arena.take<float>(wide);
        dgate_ = take(arena, count_ * mlp, type);
        dup_ = take(arena, count_ * mlp, type);
        sums_ = arena.take<float>(pieces_ * 2 * std::max(hidden, mlp));
    }

    // Whether layers use the same memory one after the other, but for their inputs.
    bool shares_layers() const { return shape_.recompute || !differentiates_; }

    int64_t size_of(Place place) const {
        const bool in_mlp = place == kGate || place == kUp || place == kDown;
        return shape_.hidden * (in_mlp ? shape_.mlp : shape_.hidden);
    }

    const float* weight(int64_t layer, int place) const { return weights_[1 + kArrays * layer + place]; }
    int64_t first(int64_t piece) const { return piece * kRows; }
    int64_t last(int64_t piece) const { return std::min(count_, (piece + 1) * kRows); }

    void narrow_weights() {
        struct Part {
            const float* from;
            uint16_t* to;
            int64_t count;
        };
        std::vector<Part> parts;
        const auto add = [&](const float* from, const void* to, int64_t count) {
            constexpr int64_t kPart = 32768;
            for (int64_t at = 0; at < count; at += kPart)
                parts.push_back({from + at, static_cast<uint16_t*>(const_cast<void*>(to)) + at,
                                 std::min(kPart, count - at)});
        };
        for (int64_t l = 0; l < shape_.layers; ++l)
            for (const Place place : kMatrices) add(weight(l, place), kept_[l].matrices[place], size_of(place));
        add(weights_[0], table_, shape_.vocabulary * shape_.hidden);
        pool_.share(parts.size(), [&](int64_t part, int) {
            run_.convert[kBfloat16](parts[part].from, parts[part].count, parts[part].to);
        });
    }

    // y (N, outputs) = x W^T + bias
    const Product* plan_forward(int64_t outputs, int64_t inputs, int32_t type, bool bias, bool adds) const {
        return planned({count_, outputs, inputs, {shape_.type, inputs, 1}, {shape_.type, 1, inputs},
                        {type, outputs, 1}, bias, adds});
    }

    // dx (N, inputs) = dy W
    const Product* plan_backward(int64_t outputs, int64_t inputs, int32_t type, bool adds) const {
        return planned({count_, inputs, outputs, {shape_.type, outputs, 1}, {shape_.type, inputs, 1},
                        {type, inputs, 1}, false, adds});
    }

    // dW (outputs, inputs) = dy^T x
    const Product* plan_weights(int64_t outputs, int64_t inputs) const {
        return planned({outputs, inputs, count_, {shape_.type, 1, outputs}, {shape_.type, inputs, 1},
                        {kFloat32, inputs, 1}, false, false});
    }

    const Product* planned(const Product::Shape& shape) const {
        const Product* made = Product::plan(shape, level_);
        if (!made) throw Failure();
        return made;
    }

    // Products that do not need each other's results.
    void multiply(std::initializer_list<Multiplication> all) {
        if (!::multiply(pool_, all.begin(), static_cast<int64_t>(all.size()))) throw Failure();
    }

    // Rows (N, C) in the products' type: where they lie, or in one of three places.
    const void* operand(const float* rows, int place) {
        if (shape_.type == kFloat32) return rows;
        const int64_t hidden = shape_.hidden;
        auto* to = static_cast<uint16_t*>(narrow_[place]);
        pool_.share(pieces_, [&](int64_t piece, int) {
            run_.convert[kBfloat16](rows + first(piece) * hidden, (last(piece) - first(piece)) * hidden,
                                    to + first(piece) * hidden);
        });
        return to;
    }

    char* at(const void* rows, int64_t row, int64_t width) const {
        return static_cast<char*>(const_cast<void*>(rows)) + row * width * (shape_.type == kBfloat16 ? 2 : 4);
    }

    // h = norm(x)
    void norm(const float* x, const float* gamma, const float* beta) {
        const int64_t hidden = shape_.hidden;
        pool_.share(pieces_, [&](int64_t piece, int) {
            run_.norm[shape_.type](x + first(piece) * hidden, last(piece) - first(piece), hidden, gamma, beta,
                                   shape_.epsilon, at(h_, first(piece), hidden));
        });
    }

    // Pieces' sums of `width` columns, `stride` from one piece to the next -> their sum
    void gather(const float* sums, int64_t stride, int64_t width, float* to) {
        pool_.share((width + kColumns - 1) / kColumns, [&](int64_t part, int) {
            const int64_t begin = part * kColumns, columns = std::min(kColumns, width - begin);
            std::memset(to + begin, 0, columns * sizeof(float));
            run_.add_rows(sums + begin, pieces_, columns, stride, to + begin);
        });
    }

    // The sum of the rows (N, C) -> to (C,)
    void add_up(const float* rows, float* to) {
        const int64_t hidden = shape_.hidden;
        pool_.share(pieces_, [&](int64_t piece, int) {
            float* sums = sums_ + piece * hidden;
            std::memset(sums, 0, hidden * sizeof(float));
            run_.add_rows(rows + first(piece) * hidden, last(piece) - first(piece), hidden, hidden, sums);
        });
        gather(sums_, hidden, hidden, to);
    }

    // change += the gradient of x, of which norm made h, whose gradient is in dh
    void norm_gradient(const float* x, const float* gamma, float* dgamma, float* dbeta) {
        const int64_t hidden = shape_.hidden;
        pool_.share(pieces_, [&](int64_t piece, int) {
            float* sums = sums_ + piece * 2 * hidden;
            std::memset(sums, 0, 2 * hidden * sizeof(float));
            const int64_t offset = first(piece) * hidden;
            run_.norm_gradient(x + offset, dh_ + offset, last(piece) - first(piece), hidden, gamma, shape_.epsilon,
                               change_ + offset, sums, sums + hidden);
        });
        gather(sums_, 2 * hidden, hidden, dgamma);
        gather(sums_ + hidden, 2 * hidden, hidden, dbeta);
    }

    AttentionShape attention() const {
        return {shape_.batch, shape_.heads, shape_.hidden / shape_.heads, shape_.tokens, shape_.tokens, 0,
                shape_.window, shape_.type};
    }

    template <class Number>
    Rows<Number> heads_of(Number* rows) const {
        return {rows, shape_.tokens * shape_.hidden, shape_.hidden / shape_.heads, shape_.hidden};
    }

    void turn(float* q, float* k, bool back) {
        const int64_t hidden = shape_.hidden, size = hidden / shape_.heads;
        pool_.share(pieces_, [&](int64_t piece, int) {
            for (int64_t n = first(piece); n < last(piece); ++n) {
                const int64_t place = n % shape_.tokens * size;
                run_.turn(q + n * hidden, shape_.heads, size, cos_ + place, sin_ + place, back);
                run_.turn(k + n * hidden, shape_.heads, size, cos_ + place, sin_ + place, back);
            }
        });
    }

    // Layer l: `out` gets its result; without, only what its gradient needs is computed.
    void forward(int64_t l, float* out) {
        Kept& kept = kept_[l];
        const int64_t hidden = shape_.hidden, mlp = shape_.mlp, wide = count_ * hidden * sizeof(float);
        norm(kept.x, weight(l, kNorm), weight(l, kNormBeta));
        const Product* square = plan_forward(hidden, hidden, kFloat32, true, false);
        multiply({{square, h_, kept.matrices[kQ], weight(l, kQBias), kept.q},
                  {square, h_, kept.matrices[kK], weight(l, kKBias), kept.k},
                  {square, h_, kept.matrices[kV], weight(l, kVBias), kept.v}});
        turn(kept.q, kept.k, false);
        if (!attend_rows(pool_, level_, attention(), heads_of<const float>(kept.q), heads_of<const float>(kept.k),
                         heads_of<const float>(kept.v), heads_of(kept.attended), kept.log_sums))
            throw std::bad_alloc();
        std::memcpy(kept.middle, kept.x, wide);
        multiply({{plan_forward(hidden, hidden, kFloat32, true, true), operand(kept.attended, 0), kept.matrices[kOut],
                   weight(l, kOutBias), kept.middle}});
        norm(kept.middle, weight(l, kMlpNorm), weight(l, kMlpNormBeta));
        const Product* up = plan_forward(mlp, hidden, shape_.type, true, false);
        multiply({{up, h_, kept.matrices[kGate], weight(l, kGateBias), kept.gate},
                  {up, h_, kept.matrices[kUp], weight(l, kUpBias), kept.up}});
        if (!out) return;
        pool_.share(pieces_, [&](int64_t piece, int) {
            const int64_t row = first(piece);
            run_.gated[shape_.type](at(kept.gate, row, mlp), at(kept.up, row, mlp), (last(piece) - row) * mlp,
                                    at(act_, row, mlp));
        });
        std::memcpy(out, kept.middle, wide);
        multiply({{plan_forward(hidden, mlp, kFloat32, true, true), act_, kept.matrices[kDown],
                   weight(l, kDownBias), out}});
    }

    // Layer l: the gradient of its result, in `change`, becomes that of its input.
    void backward(int64_t l, float* const* gradients) {
        const Kept& kept = kept_[l];
        const int64_t hidden = shape_.hidden, mlp = shape_.mlp;
        const Product* square_weights = plan_weights(hidden, hidden);

        const void* change = operand(change_, 0);
        add_up(change_, gradients[kDownBias]);
        multiply({{plan_backward(hidden, mlp, shape_.type, false), change, kept.matrices[kDown], nullptr, dgate_}});
        norm(kept.middle, weight(l, kMlpNorm), weight(l, kMlpNormBeta));
        pool_.share(pieces_, [&](int64_t piece, int) {
            const int64_t row = first(piece);
            float* sums = sums_ + piece * 2 * mlp;
            std::memset(sums, 0, 2 * mlp * sizeof(float));
            run_.gated_gradient[shape_.type](at(kept.gate, row, mlp), at(kept.up, row, mlp), last(piece) - row, mlp,
                                             at(dgate_, row, mlp), at(dup_, row, mlp), at(act_, row, mlp), sums,
                                             sums + mlp);
        });
        gather(sums_, 2 * mlp, mlp, gradients[kGateBias]);
        gather(sums_ + mlp, 2 * mlp, mlp, gradients[kUpBias]);
        multiply({{plan_weights(hidden, mlp), change, act_, nullptr, gradients[kDown]},
                  {plan_weights(mlp, hidden), dgate_, h_, nullptr, gradients[kGate]},
                  {plan_weights(mlp, hidden), dup_, h_, nullptr, gradients[kUp]},
                  {plan_backward(mlp, hidden, kFloat32, false), dgate_, kept.matrices[kGate], nullptr, dh_}});
        multiply({{plan_backward(mlp, hidden, kFloat32, true), dup_, kept.matrices[kUp], nullptr, dh_}});
        norm_gradient(kept.middle, weight(l, kMlpNorm), gradients[kMlpNorm], gradients[kMlpNormBeta]);

        change = operand(change_, 0);
        add_up(change_, gradients[kOutBias]);
        multiply({{square_weights, change, operand(kept.attended, 1), nullptr, gradients[kOut]},
                  {plan_backward(hidden, hidden, kFloat32, false), change, kept.matrices[kOut], nullptr, dh_}});
        if (!attend_rows_gradient(pool_, level_, attention(), heads_of<const float>(kept.q),
                                  heads_of<const float>(kept.k), heads_of<const float>(kept.v),
                                  heads_of<const float>(kept.attended), kept.log_sums, heads_of<const float>(dh_),
                                  heads_of(dq_), heads_of(dk_), heads_of(dv_)))
            throw std::bad_alloc();
        turn(dq_, dk_, true);
        add_up(dq_, gradients[kQBias]);
        add_up(dk_, gradients[kKBias]);
        add_up(dv_, gradients[kVBias]);
        const void *dq = operand(dq_, 0), *dk = operand(dk_, 1), *dv = operand(dv_, 2);
        norm(kept.x, weight(l, kNorm), weight(l, kNormBeta));
        const Product* square = plan_backward(hidden, hidden, kFloat32, true);
        multiply({{square_weights, dq, h_, nullptr, gradients[kQ]},
                  {square_weights, dk, h_, nullptr, gradients[kK]},
                  {square_weights, dv, h_, nullptr, gradients[kV]},
                  {plan_backward(hidden, hidden, kFloat32, false), dq, kept.matrices[kQ], nullptr, dh_}});
        multiply({{square, dk, kept.matrices[kK], nullptr, dh_}});
        multiply({{square, dv, kept.matrices[kV], nullptr, dh_}});
        norm_gradient(kept.x, weight(l, kNorm), gradients[kNorm], gradients[kNormBeta]);
    }

    // The last norm, the logits of some rows at a time, and the loss. With gradients: that of the normed rows in dh, and
    // the embedding's as the output projection.
    void score_all(const int32_t* targets, const float* mask, float factor, float* loss, float* const* gradients) {
        const int64_t hidden = shape_.hidden, vocabulary = shape_.vocabulary;
        const int32_t type = shape_.type;
        const float* const* last_norm = weights_ + 1 + kArrays * shape_.layers;
        norm(final_, last_norm[0], last_norm[1]);
        // a row's gradients lie where its logits were, in their type
        const int64_t change_row = type == kBfloat16 ? 2 * vocabulary : vocabulary;
        for (int64_t begin = 0; begin < count_; begin += logit_rows_) {
            const int64_t rows = std::min(logit_rows_, count_ - begin);
            const void* from = at(h_, begin, hidden);
            multiply({{planned({rows, vocabulary, hidden, {type, hidden, 1}, {type, 1, hidden},
                                {kFloat32, vocabulary, 1}, false, false}),
                       from, table_, nullptr, logits_}});
            pool_.share(rows, [&](int64_t row, int) {
                const int64_t n = begin + row;
                losses_[n] = run_.score[type](logits_ + row * vocabulary, vocabulary, targets[n], mask[n] * factor,
                                              hits_ + n, gradients != nullptr);
            });
            if (!gradients) continue;
            multiply({{planned({rows, hidden, vocabulary, {type, change_row, 1}, {type, hidden, 1},
                                {kFloat32, hidden, 1}, false, false}),
                       logits_, table_, nullptr, dh_ + begin * hidden},
                      {planned({vocabulary, hidden, rows, {type, 1, change_row}, {type, hidden, 1},
                                {kFloat32, hidden, 1}, false, begin > 0}),
                       logits_, from, nullptr, gradients[0]}});
        }
        double total = 0.0, right = 0.0;
        for (int64_t n = 0; n < count_; ++n) {
            total += static_cast<double>(mask[n]) * losses_[n];
            right += static_cast<double>(mask[n]) * hits_[n];
        }
        loss[0] = static_cast<float>(total * factor);
        loss[1] = static_cast<float>(right);
    }

    Pool::Turn& pool_;
    const Kernels& run_;
    const int level_;
    const TrainingShape& shape_;
    const float* const* weights_;
    const float *cos_, *sin_;
    const bool differentiates_;
    const int64_t count_, pieces_, logit_rows_;

    std::vector<Kept> kept_;
    const void* table_;
    float *final_, *logits_, *losses_, *hits_, *change_, *dh_, *dq_, *dk_, *dv_, *sums_;
    void *h_, *act_, *dgate_, *dup_, *narrow_[3];
};

}  // namespace

bool TrainingShape::valid() const {
    return batch > 0 && tokens > 0 && layers > 0 && hidden > 0 && heads > 0 && hidden % heads == 0 &&
           hidden / heads % 2 == 0 && mlp > 0 && vocabulary > 0 && window > 0 &&
           (type == kFloat32 || type == kBfloat16);
}

int train_batch(Pool::Turn& pool, int level, const TrainingShape& shape, const float* const* weights, const float* cos,
                const float* sin, const int32_t* ids, const int32_t* targets, const float* mask, float factor,
                float* loss, float* const* gradients) {
    if (!shape.valid() || level < 0 || level > best_level()) return 1;
    for (int64_t n = 0; n < shape.batch * shape.tokens; ++n)
        if (ids[n] < 0 || ids[n] >= shape.vocabulary || targets[n] < 0 || targets[n] >= shape.vocabulary) return 1;
    try {
        Training(pool, level, shape, weights, cos, sin, gradients != nullptr)
            .run(ids, targets, mask, factor, loss, gradients);
        return 0;
    } catch (const std::bad_alloc&) {
        return 2;
    } catch (const Failure&) {
        return 3;
    }
}
