// A training step's forward and backward pass. Linear layers are linear.h's, attention is attention.h's, and what is
// between them is computed row by row (training_kernels.h), in pieces of rows that threads share.
//
// Sums over rows, of biases and norms, are made of each piece's own sum, added in the order of the pieces: numbers do not
// depend on threads.

#include "training.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "arithmetic.h"
#include "attention.h"
#include "levels.h"
#include "linear.h"
#include "training_memory.h"

namespace {

struct Kernels {
    void (*convert[2][2])(const void* from, int64_t count, float factor, void* to);  // by Type, as all pairs here
    void (*norm[2])(const float* x, int64_t rows, int64_t width, const float* gamma, const float* beta, float epsilon,
                    void* out);
    void (*norm_gradient)(const float* x, const float* dh, int64_t rows, int64_t width, const float* gamma,
                          float epsilon, float* dx, float* dgamma, float* dbeta);
    void (*turn)(float* row, int64_t heads, int64_t size, const float* cos, const float* sin, bool back);
    void (*gated[2])(const void* gate, const void* up, int64_t count, void* out);
    void (*gated_gradient[2])(const void* gate, const void* up, int64_t rows, int64_t width, void* change,
                              void* up_change, void* out, float* sums, float* up_sums);
    void (*add_rows)(const float* from, int64_t rows, int64_t width, int64_t stride, float* sums);
    void (*drop[2])(const void* from, int64_t first, int64_t rows, int64_t width, const Mask& mask, void* to);
    void (*add_dropped[2])(const void* from, int64_t first, int64_t rows, int64_t width, const Mask& mask, void* to);
    float (*score[2])(float* logits, int64_t width, int64_t target, float weight, float* hit, bool wants_change);
};

}  // namespace

#define KERNELS_FILE "training_kernels.h"
#include "each_level.h"

namespace {

constexpr int64_t kColumns = 256;  // of a piece of sums over rows
constexpr unsigned kAll = (1u << kLinears) - 1;

// A packed matrix that is to be unpacked in the products' type.
struct Opening {
    const Matrix& of;
    int64_t inputs;
    char* to;

    int64_t strips() const { return (of.outputs + kStrip - 1) / kStrip; }
};

class Training : private TrainingMemory {
  public:
    Training(Pool::Turn& pool, int level, const TrainingShape& shape, const TrainingWeights& weights,
             const Adapters& adapters, const float* cos, const float* sin, float* const* gradients,
             const Dropout* dropout)
        : TrainingMemory(shape, weights, adapters, gradients),
          pool_(pool),
          run_(kernels_of(level)),
          arithmetic_(arithmetic(level)),
          level_(level),
          cos_(cos),
          sin_(sin),
          dropout_(dropout),
          products_(pool, level, count_, shape.type) {
        pool_.share(copies_.size(), [&](int64_t number, int) {
            const Copy& copy = copies_[number];
            run_.convert[copy.from_type][copy.type](copy.from, copy.count, copy.factor, copy.to);
        });
    }

    void run(const int32_t* ids, const int32_t* targets, const float* mask, float factor, float* loss) {
        const int64_t hidden = shape_.hidden;
        pool_.share(pieces_, [&](int64_t piece, int) {
            for (int64_t n = first(piece); n < last(piece); ++n)
                arithmetic_.row(embedding(), ids[n], hidden, kept_[0].x + n * hidden);
        });
        if (drops()) drop(kept_[0].x, kFloat32, hidden, dropout_->embedding(), kept_[0].x);
        for (int64_t l = 0; l < shape_.layers; ++l) forward(l, l + 1 < shape_.layers ? kept_[l + 1].x : final_);
        score_all(targets, mask, factor, loss);
        if (!differentiates()) return;
        std::memset(change_, 0, count_ * hidden * sizeof(float));
        norm_gradient(final_, shape_.layers, 0);
        const int64_t lowest = lowest_trained();
        for (int64_t l = shape_.layers - 1; l >= lowest; --l) {
            if (shape_.recompute && l + 1 < shape_.layers) forward(l, nullptr);  // the last one's are still there
            backward(l, l > lowest || trains_weights());
        }
        if (!trains_weights()) return;
        if (drops()) drop(change_, kFloat32, hidden, dropout_->embedding(), change_);
        const int64_t parts = (hidden + kColumns - 1) / kColumns;
        pool_.share(parts, [&](int64_t part, int) {
            const int64_t begin = part * kColumns, width = std::min(kColumns, hidden - begin);
            for (int64_t n = 0; n < count_; ++n)
                run_.add_rows(change_ + n * hidden + begin, 1, width, 0, gradients_[0] + ids[n] * hidden + begin);
        });
    }

  private:
    // The lowest layer of which anything is trained.
    int64_t lowest_trained() const {
        int64_t l = 0;
        const auto trained = [](const Linear& linear) { return linear.rank > 0; };
        while (!trains_weights() && l + 1 < shape_.layers &&
               std::none_of(kept_[l].linears, kept_[l].linears + kLinears, trained))
            ++l;
        return l;
    }

    int64_t first(int64_t piece) const { return piece * kRows; }
    int64_t last(int64_t piece) const { return std::min(count_, (piece + 1) * kRows); }

    // Unpack what is packed of layer l, of `linears` a bit each, for the products that follow.
    void open(int64_t l, unsigned linears) {
        if (opened_layer_ != l) opened_ = 0;
        std::vector<Opening> openings;
        for (int i = 0; i < kLinears; ++i)
            if ((linears & ~opened_) >> i & 1 && is_packed(matrix(l, i)))
                openings.push_back({matrix(l, i), kept_[l].linears[i].inputs, places_[i]});
        unpack(openings);
        opened_layer_ = l;
        opened_ |= linears;
    }

    void unpack(const std::vector<Opening>& openings) {
        if (openings.empty()) return;
        int64_t strips = 0;
        for (const Opening& one : openings) strips += one.strips();
        pool_.share(strips, [&](int64_t strip, int) {
            const Opening* one = openings.data();
            for (; strip >= one->strips(); ++one) strip -= one->strips();
            const int64_t first = strip * kStrip, offset = first * one->inputs * bytes_of(shape_.type);
            arithmetic_.open_strip(one->of, first, one->inputs, shape_.type == kBfloat16, one->to + offset);
        });
    }

    // Whether some of what is added to the residual stream is dropped, and of what adapters get.
    bool drops() const { return dropout_ && dropout_->drops(); }

    // to = rows (N, width) of a type by the mask
    void drop(const void* rows, int32_t type, int64_t width, const Mask& mask, void* to) {
        const int64_t row = width * bytes_of(type);
        pool_.share(pieces_, [&](int64_t piece, int) {
            const int64_t begin = first(piece);
            run_.drop[type](static_cast<const char*>(rows) + begin * row, begin, last(piece) - begin, width, mask,
                            static_cast<char*>(to) + begin * row);
        });
    }

    // to, of a type, += rows (N, width) by the mask
    void add_dropped(const float* rows, int64_t width, const Mask& mask, int32_t type, void* to) {
        const int64_t row = width * bytes_of(type);
        pool_.share(pieces_, [&](int64_t piece, int) {
            const int64_t begin = first(piece);
            run_.add_dropped[type](rows + begin * width, begin, last(piece) - begin, width, mask,
                                   static_cast<char*>(to) + begin * row);
        });
    }

    bool drops_input(const Linear& linear) const { return adapters_.drops && linear.rank > 0; }

    // What the adapter of a linear layer gets of its input: null for the input itself.
    const void* adapted(int64_t l, int i, const void* x) {
        const Linear& linear = kept_[l].linears[i];
        if (!drops_input(linear)) return nullptr;
        drop(x, shape_.type, linear.inputs, dropout_->adapter(l, i), TrainingMemory::dropped(i));
        return TrainingMemory::dropped(i);
    }

    void state_forward(int64_t l, int i, const void* x, void* y, int32_t y_type, bool adds) {
        products_.forward(kept_[l].linears[i], x, y, y_type, adds, adapted(l, i, x));
    }

    // What `add_through` adds is still missing in dx when the products have run.
    void state_backward(int64_t l, int i, const void* dy, void* dx, int32_t dx_type, bool adds) {
        const Linear& linear = kept_[l].linears[i];
        products_.backward(linear, dy, dx, dx_type, adds, dx && drops_input(linear) ? through(i) : nullptr);
    }

    void add_through(int64_t l, int i, int32_t dx_type, void* dx) {
        const Linear& linear = kept_[l].linears[i];
        if (dx && drops_input(linear)) add_dropped(through(i), linear.inputs, dropout_->adapter(l, i), dx_type, dx);
    }

    // Rows (N, C) in the products' type: where they lie, or in one of three places.
    const void* operand(const float* rows, int place) {
        if (shape_.type == kFloat32) return rows;
        const int64_t hidden = shape_.hidden;
        auto* to = static_cast<uint16_t*>(narrow_[place]);
        pool_.share(pieces_, [&](int64_t piece, int) {
            run_.convert[kFloat32][kBfloat16](rows + first(piece) * hidden, (last(piece) - first(piece)) * hidden,
                                    1.0f, to + first(piece) * hidden);
        });
        return to;
    }

    // h = norm(x) by the gamma and beta at that place
    void norm(const float* x, int64_t layer, int place) {
        const int64_t hidden = shape_.hidden;
        const float *gamma = norm_array(layer, place), *beta = norm_array(layer, place + 1);
        pool_.share(pieces_, [&](int64_t piece, int) {
            run_.norm[shape_.type](x + first(piece) * hidden, last(piece) - first(piece), hidden, gamma, beta,
                                   shape_.epsilon, at(h_, first(piece), hidden));
        });
    }

    // Pieces' sums of `width` columns, `stride` from one piece to the next -> their sum, where it is wanted
    void gather(const float* sums, int64_t stride, int64_t width, float* to) {
        if (!to) return;
        pool_.share((width + kColumns - 1) / kColumns, [&](int64_t part, int) {
            const int64_t begin = part * kColumns, columns = std::min(kColumns, width - begin);
            std::memset(to + begin, 0, columns * sizeof(float));
            run_.add_rows(sums + begin, pieces_, columns, stride, to + begin);
        });
    }

    // The sum of the rows (N, C) -> to (C,), where it is wanted
    void add_up(const float* rows, float* to) {
        if (!to) return;
        const int64_t hidden = shape_.hidden;
        pool_.share(pieces_, [&](int64_t piece, int) {
            float* sums = sums_ + piece * hidden;
            std::memset(sums, 0, hidden * sizeof(float));
            run_.add_rows(rows + first(piece) * hidden, last(piece) - first(piece), hidden, hidden, sums);
        });
        gather(sums_, hidden, hidden, to);
    }

    // change += the gradient of x, of which norm made h, whose gradient is in dh
    void norm_gradient(const float* x, int64_t layer, int place) {
        const int64_t hidden = shape_.hidden;
        float *dgamma = gradient(layer, place), *dbeta = gradient(layer, place + 1);
        pool_.share(pieces_, [&](int64_t piece, int) {
            float* sums = dgamma ? sums_ + piece * 2 * hidden : nullptr;
            if (sums) std::memset(sums, 0, 2 * hidden * sizeof(float));
            const int64_t offset = first(piece) * hidden;
            run_.norm_gradient(x + offset, dh_ + offset, last(piece) - first(piece), hidden, norm_array(layer, place),
                               shape_.epsilon, change_ + offset, sums, sums ? sums + hidden : nullptr);
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
        const Linear* linears = kept.linears;
        const int64_t hidden = shape_.hidden, mlp = shape_.mlp, wide = count_ * hidden * sizeof(float);
        open(l, out ? kAll : kAll & ~(1u << kDown));
        norm(kept.x, l, kNorm);
        state_forward(l, kQ, h_, kept.q, kFloat32, false);
        state_forward(l, kK, h_, kept.k, kFloat32, false);
        state_forward(l, kV, h_, kept.v, kFloat32, false);
        products_.run();
        turn(kept.q, kept.k, false);
        if (!attend_rows(pool_, level_, attention(), heads_of<const float>(kept.q), heads_of<const float>(kept.k),
                         heads_of<const float>(kept.v), heads_of(kept.attended), kept.log_sums))
            throw std::bad_alloc();
        std::memcpy(kept.middle, kept.x, wide);
        // with dropout what is to be added lies in dh first
        state_forward(l, kOut, operand(kept.attended, 0), drops() ? dh_ : kept.middle, kFloat32, !drops());
        products_.run();
        if (drops()) add_dropped(dh_, hidden, dropout_->attention(l), kFloat32, kept.middle);
        norm(kept.middle, l, kMlpNorm);
        state_forward(l, kGate, h_, kept.gate, shape_.type, false);
        state_forward(l, kUp, h_, kept.up, shape_.type, false);
        products_.run();
        if (!out && linears[kDown].rank == 0) return;
        pool_.share(pieces_, [&](int64_t piece, int) {
            const int64_t row = first(piece);
            run_.gated[shape_.type](at(kept.gate, row, mlp), at(kept.up, row, mlp), (last(piece) - row) * mlp,
                                    at(act_, row, mlp));
        });
        if (out) std::memcpy(out, kept.middle, wide);
        state_forward(l, kDown, act_, out && drops() ? dh_ : out, kFloat32, !drops());
        products_.run();
        if (out && drops()) add_dropped(dh_, hidden, dropout_->mlp(l), kFloat32, out);
    }

    // Layer l: the gradient of its result, in `change`, becomes that of its input, where that is wanted.
    void backward(int64_t l, bool wants_input) {
        const Kept& kept = kept_[l];
        const int64_t mlp = shape_.mlp;
        open(l, kAll);

        const float* added = change_of_added(drops() ? dropout_->mlp(l) : Mask{});
        const void* change = operand(added, 0);
        add_up(added, bias_gradient(l, kDown));
        state_backward(l, kDown, change, dgate_, shape_.type, false);
        products_.run();
        add_through(l, kDown, shape_.type, dgate_);
        norm(kept.middle, l, kMlpNorm);
        pool_.share(pieces_, [&](int64_t piece, int) {
            const int64_t row = first(piece);
            float* sums = trains_weights() ? sums_ + piece * 2 * mlp : nullptr;
            if (sums) std::memset(sums, 0, 2 * mlp * sizeof(float));
            run_.gated_gradient[shape_.type](at(kept.gate, row, mlp), at(kept.up, row, mlp), last(piece) - row, mlp,
                                             at(dgate_, row, mlp), at(dup_, row, mlp), at(act_, row, mlp), sums,
                                             sums ? sums + mlp : nullptr);
        });
        gather(sums_, 2 * mlp, mlp, bias_gradient(l, kGate));
        gather(sums_ + mlp, 2 * mlp, mlp, bias_gradient(l, kUp));
        state_backward(l, kGate, dgate_, dh_, kFloat32, false);
        state_backward(l, kUp, dup_, dh_, kFloat32, true);
        state_gradients(l, kDown, act_, change);
        state_gradients(l, kGate, h_, dgate_);
        state_gradients(l, kUp, h_, dup_);
        products_.run();
        for (const int i : {kGate, kUp}) add_through(l, i, kFloat32, dh_);
        norm_gradient(kept.middle, l, kMlpNorm);

        added = change_of_added(drops() ? dropout_->attention(l) : Mask{});
        change = operand(added, 0);
        add_up(added, bias_gradient(l, kOut));
        state_backward(l, kOut, change, dh_, kFloat32, false);
        state_gradients(l, kOut, operand(kept.attended, 1), change);
        products_.run();
        add_through(l, kOut, kFloat32, dh_);
        if (!attend_rows_gradient(pool_, level_, attention(), heads_of<const float>(kept.q),
                                  heads_of<const float>(kept.k), heads_of<const float>(kept.v),
                                  heads_of<const float>(kept.attended), kept.log_sums, heads_of<const float>(dh_),
                                  heads_of(dq_), heads_of(dk_), heads_of(dv_)))
            throw std::bad_alloc();
        turn(dq_, dk_, true);
        norm(kept.x, l, kNorm);
        float* const changes[] = {dq_, dk_, dv_};
        const void* operands[3];
        for (int i = 0; i < 3; ++i) {
            operands[i] = operand(changes[i], i);
            add_up(changes[i], bias_gradient(l, i));
            state_backward(l, i, operands[i], wants_input ? dh_ : nullptr, kFloat32, i > 0);
        }
        for (int i = 0; i < 3; ++i) state_gradients(l, i, h_, operands[i]);
        products_.run();
        if (!wants_input) return;
        for (const int i : {kQ, kK, kV}) add_through(l, i, kFloat32, dh_);
        norm_gradient(kept.x, l, kNorm);
    }

    // The gradient of what has been added to the residual stream, by that place's mask; dq has no other use then.
    const float* change_of_added(const Mask& mask) {
        if (!drops()) return change_;
        drop(change_, kFloat32, shape_.hidden, mask, dq_);
        return dq_;
    }

    // The gradients of a linear layer's matrix or adapter, whichever is trained.
    void state_gradients(int64_t l, int i, const void* x, const void* dy) {
        float* const* adapter = trains_weights() ? nullptr : gradients_ + (l * kLinears + i) * 2;
        products_.gradients(kept_[l].linears[i], x, dy, gradient(l, place_of(i)), adapter ? adapter[0] : nullptr,
                            adapter ? adapter[1] : nullptr, adapted(l, i, x));
    }

    // The last norm, the logits of some rows at a time, and the loss. With gradients: that of the normed rows in dh, and
    // the embedding's as the output projection.
    void score_all(const int32_t* targets, const float* mask, float factor, float* loss) {
        const int64_t hidden = shape_.hidden, vocabulary = shape_.vocabulary;
        const int32_t type = shape_.type;
        norm(final_, shape_.layers, 0);
        if (is_packed(embedding())) {
            unpack({{embedding(), hidden, room_}});
            opened_layer_ = -1;
        }
        // a row's gradients lie where its logits were, in their type
        const int64_t change_row = type == kBfloat16 ? 2 * vocabulary : vocabulary;
        for (int64_t begin = 0; begin < count_; begin += logit_rows_) {
            const int64_t rows = std::min(logit_rows_, count_ - begin);
            const void* from = at(h_, begin, hidden);
            products_.add({rows, vocabulary, hidden, {type, hidden, 1}, {type, 1, hidden}, {kFloat32, vocabulary, 1},
                           false, false},
                          from, table_, nullptr, logits_);
            products_.run();
            pool_.share(rows, [&](int64_t row, int) {
                const int64_t n = begin + row;
                losses_[n] = run_.score[type](logits_ + row * vocabulary, vocabulary, targets[n], mask[n] * factor,
                                              hits_ + n, differentiates());
            });
            if (!differentiates()) continue;
            products_.add({rows, hidden, vocabulary, {type, change_row, 1}, {type, hidden, 1}, {kFloat32, hidden, 1},
                           false, false},
                          logits_, table_, nullptr, dh_ + begin * hidden);
            if (trains_weights())
                products_.add({vocabulary, hidden, rows, {type, 1, change_row}, {type, hidden, 1},
                               {kFloat32, hidden, 1}, false, begin > 0},
                              logits_, from, nullptr, gradients_[0]);
            products_.run();
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
    const Arithmetic& arithmetic_;
    const int level_;
    const float *cos_, *sin_;
    const Dropout* const dropout_;
    Rounds products_;
    int64_t opened_layer_ = -1;
    unsigned opened_ = 0;
};

}  // namespace

bool TrainingShape::valid() const {
    return batch > 0 && tokens > 0 && layers > 0 && hidden > 0 && heads > 0 && hidden % heads == 0 &&
           hidden / heads % 2 == 0 && mlp > 0 && vocabulary > 0 && window > 0 &&
           (type == kFloat32 || type == kBfloat16) && (bias_type == kFloat32 || bias_type == kBfloat16);
}

int train_batch(Pool::Turn& pool, int level, const TrainingShape& shape, const TrainingWeights& weights,
                const Adapters& adapters, const float* cos, const float* sin, const int32_t* ids,
                const int32_t* targets, const float* mask, float factor, float* loss, float* const* gradients,
                const Dropout* dropout) {
    bool rounded = shape.bias_type != kFloat32;
    for (int64_t i = 0; i < 1 + kLinears * shape.layers; ++i) {
        rounded |= weights.matrices[i].type != kFloat32;
        if (weights.matrices[i].type > kInt4) return 1;  // float16 is widened by answers alone
    }
    if (!shape.valid() || level < 0 || level > best_level()) return 1;
    if (adapters.values ? adapters.rank < 1 : gradients && rounded) return 1;
    for (int64_t n = 0; n < shape.batch * shape.tokens; ++n)
        if (ids[n] < 0 || ids[n] >= shape.vocabulary || targets[n] < 0 || targets[n] >= shape.vocabulary) return 1;
    try {
        Training(pool, level, shape, weights, adapters, cos, sin, gradients, dropout)
            .run(ids, targets, mask, factor, loss);
        return 0;
    } catch (const std::bad_alloc&) {
        return 2;
    } catch (const Failure&) {
        return 3;
    }
}
