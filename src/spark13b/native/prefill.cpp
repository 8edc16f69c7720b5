// A part of one text through all layers: its keys and values go to the text's rings, and logits come out.
//
// The formulas are those of decode.cpp, for many rows at once: attention by attention.h; products of int8 and int4 weights by
// whole numbers, as a decode step's (row_products.h), else by products.h (of weights that are no floats, each piece is
// unpacked first). Between products everything is float32; with kBfloat16 the two sides of products.h's are rounded to
// bfloat16, and its sums are float32.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include "arithmetic.h"
#include "attention.h"
#include "beside.h"
#include "levels.h"
#include "model.h"
#include "pool.h"
#include "products.h"
#include "ring.h"
#include "row_products.h"

namespace {

struct Kernels {
    void (*narrow)(const float* from, int64_t count, uint16_t* to);
    void (*widen)(const uint16_t* from, int64_t count, float* to);
    void (*round)(float* row, int64_t count);
    void (*turn)(float* row, const float* cos, const float* sin, int64_t size);
};

}  // namespace

#define KERNELS_FILE "prefill_kernels.h"
#include "each_level.h"

namespace {

// So few rows go through the products of a decode step whatever the type, which read the weights once and have nothing to prepare.
constexpr int64_t kFew = 8;

// From so many rows on AMX multiplies by unpacked weights faster in bfloat16 than by whole numbers.
constexpr int64_t kManyForTiles = 128;

// Rows that products take, so that lengths of a few sizes only need kernels of their own; the rows more are zeros.
int64_t padded(int64_t count) {
    const int64_t step = count <= 64 ? 16 : 64;
    return (count + step - 1) / step * step;
}

class Prefill {
  public:
    Prefill(Pool::Turn& pool, const SparkShape& shape, const Parameters& weights, const Adapters& adapters, int level,
            bool whole_numbers, bool rounds, int64_t count)
        : pool_(pool),
          shape_(shape),
          weights_(weights),
          adapters_(adapters),
          run_(arithmetic(level)),
          own_(kernels_of(level)),
          level_(level),
          whole_(row_products::by_whole_numbers(level, whole_numbers)),
          count_(count),
          rows_(count <= kFew ? count : padded(count)),
          type_(rounds && count > kFew ? kBfloat16 : kFloat32),
          inputs_(pool, level, whole_numbers, count, std::max(shape.hidden, shape.mlp)),
          beside_(pool, level, adapters, count <= kFew ? count : 0) {
        const int64_t hidden = shape.hidden, mlp = shape.mlp;
        if (!plan(hidden, hidden, false, true, type_)) type_ = kFloat32;  // nobody multiplies bfloat16
        x_.resize(rows_ * hidden);
        q_.resize(rows_ * hidden);
        k_.resize(rows_ * hidden);
        v_.resize(rows_ * hidden);
        h_.resize(rows_ * hidden);
        gate_.resize(rows_ * mlp);
        up_.resize(rows_ * mlp);
        panels_.resize(pool.workers());
        if (adapters.values) low_.resize(3 * rows_ * adapters.rank);
    }

    // -> false when a product fails
    bool read(const float* cos, const float* sin, int64_t start, int64_t slots, int64_t window, const int32_t* ids,
              void* const* rings, int32_t ring_type, int64_t wanted, float* logits) {
        const int64_t hidden = shape_.hidden, mlp = shape_.mlp, size = hidden / shape_.heads;
        const int64_t past = std::min({start, window - 1, slots});
        const int64_t seen = past + count_;
        // attention reads the rings where what it sees lies in them row after row, in a type it takes
        const bool stays = start + count_ <= slots &&
                           (ring_type == kFloat32 || (type_ == kBfloat16 && level_ >= kTileLevel));
        const int64_t copied = stays ? 0 : seen * hidden;
        std::vector<float> keys(copied), values(copied);  // head after head: a head's lie close together

        pool_.share(count_, [&](int64_t t, int) { run_.row(weights_.embedding(), ids[t], hidden, &x_[t * hidden]); });
        for (int64_t number = 0; number < shape_.layers; ++number) {
            const auto& [matrix, vector] = weights_.layer(number);

            norm(vector.norm_gamma, vector.norm_beta);
            multiply({{matrix.q, vector.q_bias, q_.data()},
                      {matrix.k, vector.k_bias, k_.data()},
                      {matrix.v, vector.v_bias, v_.data()}},
                     h_, hidden, hidden, false);
            adapt(number, {{kQ, q_.data()}, {kK, k_.data()}, {kV, v_.data()}}, h_, hidden, hidden);
            pool_.share(shape_.heads, [&](int64_t head, int) {
                const Ring ring_keys(rings[2 * number], ring_type, head, slots, size);
                const Ring ring_values(rings[2 * number + 1], ring_type, head, slots, size);
                if (stays) {
                    for (int64_t t = 0; t < count_; ++t) {
                        const int64_t at = t * hidden + head * size;
                        turn_row(at, start + t, size, cos, sin);
                        put(ring_keys, start + t, size, &k_[at]);
                        put(ring_values, start + t, size, &v_[at]);
                    }
                    return;
                }
                float *own_keys = &keys[head * seen * size], *own_values = &values[head * seen * size];
                for (int64_t p = 0; p < past; ++p, own_keys += size, own_values += size) {
                    get(ring_keys, start - past + p, size, own_keys);
                    get(ring_values, start - past + p, size, own_values);
                }
                for (int64_t t = 0; t < count_; ++t, own_keys += size, own_values += size) {
                    const int64_t at = t * hidden + head * size;
                    turn_row(at, start + t, size, cos, sin);
                    std::memcpy(own_keys, &k_[at], size * sizeof(float));
                    std::memcpy(own_values, &v_[at], size * sizeof(float));
                    if (ring_type == kBfloat16) {  // as those that are read from the rings: parts make no difference
                        own_.round(own_keys, size);
                        own_.round(own_values, size);
                    }
                    if (t >= count_ - slots) {
                        put(ring_keys, start + t, size, own_keys);
                        put(ring_values, start + t, size, own_values);
                    }
                }
            });
            const AttentionShape attention = {1, shape_.heads, size, count_, seen, past, window, type_};
            const Rows<const float> q = {q_.data(), 0, size, hidden};
            const Rows<float> out = {h_.data(), 0, size, hidden};
            const Ring first_keys(rings[2 * number], ring_type, 0, slots, size);
            const Ring first_values(rings[2 * number + 1], ring_type, 0, slots, size);
            const auto in_ring = [&](auto* rows) {
                return Rows<std::remove_pointer_t<decltype(rows)>>{rows + (start - past) * size, 0, slots * size, size};
            };
            const auto copy = [&](const std::vector<float>& rows) {
                return Rows<const float>{rows.data(), 0, seen * size, size};
            };
            const bool good =
                !stays ? attend_rows(pool_, level_, attention, q, copy(keys), copy(values), out, nullptr)
                : ring_type == kFloat32
                    ? attend_rows(pool_, level_, attention, q, in_ring(static_cast<const float*>(first_keys.rows())),
                                  in_ring(static_cast<const float*>(first_values.rows())), out, nullptr)
                    : attend_rows(pool_, attention, q, in_ring(static_cast<const uint16_t*>(first_keys.rows())),
                                  in_ring(static_cast<const uint16_t*>(first_values.rows())), out);
            if (!good) throw std::bad_alloc();
            multiply({{matrix.out, vector.out_bias, x_.data()}}, h_, hidden, hidden, true);
            adapt(number, {{kOut, x_.data()}}, h_, hidden, hidden);

            norm(vector.mlp_norm_gamma, vector.mlp_norm_beta);
            multiply({{matrix.gate, vector.gate_bias, gate_.data()}, {matrix.up, vector.up_bias, up_.data()}}, h_, mlp,
                     hidden, false);
            adapt(number, {{kGate, gate_.data()}, {kUp, up_.data()}}, h_, mlp, hidden);
            pool_.share(rows_, [&](int64_t t, int) { run_.gated_gelu(&gate_[t * mlp], &up_[t * mlp], mlp); });
            multiply({{matrix.down, vector.down_bias, x_.data()}}, gate_, hidden, mlp, true);
            adapt(number, {{kDown, x_.data()}}, gate_, hidden, mlp);
        }
        if (wanted > 0) tell(wanted, logits);
        return good_;
    }

  private:
    struct Task {
        const Matrix& w;
        const float* bias;
        float* to;  // (rows, outputs)
    };

    // Of weights of `type`. Null where nobody can compute it.
    const Product* plan(int64_t outputs, int64_t inputs, bool adds, bool bias, int32_t type) const {
        return Product::plan({rows_, outputs, inputs, {type_, inputs, 1}, {type, 1, inputs}, {kFloat32, outputs, 1},
                              bias, adds},
                             level_);
    }

    // Of a matrix of 16 bits one that widens it, where there is one; else of unpacked weights.
    const Product* product_of(const Task& task, int64_t outputs, int64_t inputs, bool adds) const {
        const bool narrow = type_ == kFloat32 && bits_of(task.w.type) == 16, bias = task.bias != nullptr;
        const Product* widens = narrow ? plan(outputs, inputs, adds, bias, task.w.type) : nullptr;
        return widens ? widens : plan(outputs, inputs, adds, bias, type_);
    }

    static bool lies_ready(const Matrix& w, const Product* product) { return product && product->shape().b.type == w.type; }

    // Rotate a head's query and key, which begin at q_[at] and k_[at].
    void turn_row(int64_t at, int64_t position, int64_t size, const float* cos, const float* sin) {
        for (std::vector<float>* rows : {&q_, &k_})
            own_.turn(&(*rows)[at], cos + position * size, sin + position * size, size);
    }

    void get(const Ring& ring, int64_t position, int64_t size, float* to) const {
        if (ring.type() == kBfloat16)
            own_.widen(static_cast<const uint16_t*>(ring.place(position)), size, to);
        else
            std::memcpy(to, ring.place(position), size * sizeof(float));
    }

    void put(const Ring& ring, int64_t position, int64_t size, const float* from) const {
        if (ring.type() == kBfloat16)
            own_.narrow(from, size, static_cast<uint16_t*>(ring.place(position)));
        else
            std::memcpy(ring.place(position), from, size * sizeof(float));
    }

    void norm(const float* gamma, const float* beta) {
        const int64_t hidden = shape_.hidden;
        pool_.share(count_, [&](int64_t t, int) {
            run_.layer_norm(&x_[t * hidden], gamma, beta, hidden, shape_.epsilon, &h_[t * hidden]);
        });
    }

    // Rows as products.h reads them; valid until the next call.
    const void* operand_of(const std::vector<float>& rows, int64_t width) {
        if (type_ == kFloat32) return rows.data();
        narrow_.resize(rows_ * std::max(shape_.hidden, shape_.mlp));
        pool_.share(rows_, [&](int64_t t, int) { own_.narrow(&rows[t * width], width, &narrow_[t * width]); });
        return narrow_.data();
    }

    // Products of the same sizes side by side: to (rows, outputs) = or += from (rows, inputs) W^T + bias.
    void multiply(const std::vector<Task>& tasks, const std::vector<float>& from, int64_t outputs, int64_t inputs, bool adds) {
        bool whole = whole_ && (type_ == kFloat32 || level_ < kTileLevel || count_ < kManyForTiles), lie_ready = true;
        for (const Task& task : tasks) whole &= task.w.group != 0;
        std::vector<const Product*> products;
        if (!whole && count_ > kFew)
            for (const Task& task : tasks) {
                products.push_back(product_of(task, outputs, inputs, adds));
                lie_ready &= lies_ready(task.w, products.back());
            }
        if (products.empty() || !products[0]) {
            std::vector<const Matrix*> matrices;
            for (const Task& task : tasks) matrices.push_back(&task.w);
            inputs_.take(from.data(), count_, inputs, matrices);
            for (const Task& task : tasks)
                row_products::multiply(pool_, inputs_, {task.w, task.bias, count_, inputs}, adds, task.to);
            return;
        }
        const void* operand = operand_of(from, inputs);
        std::vector<Multiplication> all;
        for (size_t i = 0; i < tasks.size(); ++i)
            all.push_back({products[i], operand, tasks[i].w.data, tasks[i].bias, tasks[i].to});
        Columns columns;
        if (!lie_ready) {
            make_room(products[0]->column_size(), inputs);
            columns = [&](int64_t number, const Product::Piece& piece, int worker) {
                const Matrix& w = tasks[number].w;
                return lies_ready(w, products[number]) ? row_of(w, piece.column, inputs)
                                                       : panel_of(w, piece.column, piece.columns, inputs, worker);
            };
        }
        good_ &= ::multiply(pool_, all.data(), all.size(), columns);
    }

    struct Adapted {
        int linear;
        float* to;  // (rows, outputs)
    };

    // Add to what linear layers of the same sizes have made of `from` (rows, inputs) what their adapters do, all in float32.
    void adapt(int64_t layer, std::initializer_list<Adapted> of, const std::vector<float>& from, int64_t outputs,
               int64_t inputs) {
        if (!adapters_.values) return;
        if (count_ <= kFew) {
            for (const Adapted& one : of) {
                beside_.take(from.data(), count_, inputs, layer, {one.linear});
                beside_.add(one.linear, one.to, outputs);
            }
            return;
        }
        const int64_t rank = adapters_.rank;
        const auto planned = [&](int64_t columns, int64_t depth, bool adds) {
            return Product::plan({rows_, columns, depth, {kFloat32, depth, 1}, {kFloat32, 1, depth}, {kFloat32, columns, 1},
                                  false, adds},
                                 level_);
        };
        const Product *down = planned(rank, inputs, false), *up = planned(outputs, rank, true);
        if (!down || !up) {
            good_ = false;
            return;
        }
        std::vector<Multiplication> first, second;
        for (const Adapted& one : of) {
            const float *a = adapters_.a(layer, one.linear), *b = adapters_.b(layer, one.linear);
            if (!a) continue;
            float* low = low_.data() + static_cast<int64_t>(first.size()) * rows_ * rank;
            first.push_back({down, from.data(), a, nullptr, low});
            second.push_back({up, low, b, nullptr, one.to});
        }
        for (const auto* some : {&first, &second})
            if (!some->empty()) good_ &= ::multiply(pool_, some->data(), some->size());
    }

    // Let every thread have room to unpack so many rows of a matrix that is not of the products' type.
    void make_room(int64_t rows, int64_t inputs) {
        const size_t needed = panel_size(rows, inputs) + inputs;
        for (std::vector<float>& panel : panels_)
            if (panel.size() < needed) panel.resize(needed);
    }

    // A panel's size in floats, up to whole cache lines; behind it is room for one row of float32.
    int64_t panel_size(int64_t rows, int64_t inputs) const {
        return (rows * inputs * bytes_of(type_) + 63) / 64 * 16;
    }

    static const void* row_of(const Matrix& w, int64_t which, int64_t inputs) {
        return static_cast<const char*>(w.data) + which * inputs * bytes_of(w.type);
    }

    // Rows of a matrix in the products' type, unpacked.
    const void* panel_of(const Matrix& w, int64_t first, int64_t rows, int64_t inputs, int worker) {
        float *panel = panels_[worker].data(), *wide = panel + panel_size(rows, inputs);
        if (w.group != 0 && first % kStrip == 0 && (rows % kStrip == 0 || first + rows == w.outputs)) {
            for (int64_t r = 0; r < rows; r += kStrip)
                run_.open_strip(w, first + r, inputs, type_ == kBfloat16,
                                reinterpret_cast<char*>(panel) + r * inputs * bytes_of(type_));
            return panel;
        }
        for (int64_t r = 0; r < rows; ++r) {
            if (type_ == kFloat32) {
                run_.row(w, first + r, inputs, panel + r * inputs);
            } else {
                run_.row(w, first + r, inputs, wide);
                own_.narrow(wide, inputs, reinterpret_cast<uint16_t*>(panel) + r * inputs);
            }
        }
        return panel;
    }

    // Logits (wanted, V) of the last tokens.
    void tell(int64_t wanted, float* logits) {
        const int64_t hidden = shape_.hidden;
        const float* const* last_norm = weights_.last_norm(shape_.layers);
        norm(last_norm[0], last_norm[1]);
        inputs_.take(&h_[(count_ - wanted) * hidden], wanted, hidden, {&weights_.embedding()});
        row_products::multiply(pool_, inputs_, {weights_.embedding(), nullptr, wanted, hidden}, false, logits);
    }

    Pool::Turn& pool_;
    const SparkShape& shape_;
    const Parameters& weights_;
    const Adapters& adapters_;
    const Arithmetic& run_;
    const Kernels& own_;
    const int level_;
    const bool whole_;
    const int64_t count_, rows_;
    int32_t type_;
    row_products::Inputs inputs_;
    Beside beside_;
    std::vector<float> x_, q_, k_, v_, h_, gate_, up_;
    std::vector<float> low_;  // rows times A^T of up to three adapters
    std::vector<uint16_t> narrow_;
    std::vector<std::vector<float>> panels_;
    bool good_ = true;
};

}  // namespace

extern "C" {

// ids (count) at positions `start` on, of a text whose rings hold what is before them; `rings`: of each layer, keys and
// values (H * slots, D) of `ring_type`. logits: (wanted, vocabulary), of the last `wanted` tokens. rounds: products of
// bfloat16. whole_numbers, adapters: as of spark_decode_step.
// -> 0, 1 for an argument out of its range, 2 when there is no memory, 3 when a product fails.
EXPORTED int spark_prefill(const SparkShape* shape, const Matrix* matrices, const float* const* vectors, const float* cos,
                           const float* sin, const Adapters* adapters, int64_t count, int64_t start, int64_t slots,
                           int64_t window, const int32_t* ids, void* const* rings, int32_t ring_type, int64_t wanted, float* logits,
                           int rounds, int threads, int level, int whole_numbers) {
    if (count < 1 || start < 0 || slots < 1 || window < 1 || wanted < 0 || wanted > count || threads < 1 ||
        shape->hidden < 1 || shape->heads < 1 || shape->hidden % shape->heads || start + count > shape->positions ||
        level < 0 || level > best_level())
        return 1;
    for (int64_t t = 0; t < count; ++t)
        if (ids[t] < 0 || ids[t] >= shape->vocabulary) return 1;
    try {
        const Parameters weights = {matrices, vectors};
        Pool::Turn pool(Pool::of_process(), threads);
        const Adapters lora = adapters ? *adapters : Adapters{};
        Prefill prefill(pool, *shape, weights, lora, level, whole_numbers != 0, rounds != 0, count);
        return prefill.read(cos, sin, start, slots, window, ids, rings, ring_type, wanted, logits) ? 0 : 3;
    } catch (const std::bad_alloc&) {
        return 2;
    }
}

}  // extern "C"
