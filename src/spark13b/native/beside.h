// Adapters beside products of rows as they lie (row_products.h): rows times A^T first, by all threads, and then, with each
// piece of a product, their share of its outputs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "arithmetic.h"
#include "model.h"
#include "pool.h"

class Beside {
  public:
    // Of up to `rows` rows. Throws std::bad_alloc.
    Beside(Pool::Turn& pool, int level, const Adapters& adapters, int64_t rows)
        : pool_(pool), run_(arithmetic(level)), adapters_(adapters), low_(adapters.values ? kMost * rows * adapters.rank : 0) {}

    // From here on: x (rows, in), of up to three linear layers of a layer.
    void take(const float* x, int64_t rows, int64_t in, int64_t layer, std::initializer_list<int> linears) {
        const int64_t rank = adapters_.rank, parts = (rank + kPart - 1) / kPart;
        rows_ = rows;
        layer_ = layer;
        count_ = 0;
        for (const int linear : linears)
            if (adapters_.a(layer, linear)) of_[count_++] = linear;
        if (count_ == 0) return;
        pool_.share(count_ * parts, [&](int64_t unit, int) {
            const int64_t which = unit / parts, first = unit % parts * kPart;
            const Matrix a = {adapters_.a(layer, of_[which]), nullptr, kFloat32, 0, rank};
            run_.linear(a, nullptr, x, rows, in, false, low(which), rank, first, std::min(rank, first + kPart));
        });
    }

    // y (rows, outputs) += the share of one of them, of the outputs `begin` to `end`.
    void add(int linear, float* y, int64_t outputs, int64_t begin, int64_t end) {
        for (int64_t which = 0; which < count_; ++which) {
            if (of_[which] != linear) continue;
            const Matrix b = {adapters_.b(layer_, linear), nullptr, kFloat32, 0, outputs};
            run_.linear(b, nullptr, low(which), rows_, adapters_.rank, true, y, outputs, begin, end);
        }
    }

    // The same, of all outputs.
    void add(int linear, float* y, int64_t outputs) {
        if (!adapters_.a(layer_, linear)) return;
        constexpr int64_t kOutputs = 512;
        pool_.share((outputs + kOutputs - 1) / kOutputs, [&](int64_t part, int) {
            add(linear, y, outputs, part * kOutputs, std::min(outputs, (part + 1) * kOutputs));
        });
    }

  private:
    static constexpr int64_t kMost = 3, kPart = 8;  // linear layers at once; rows of A that a thread takes

    float* low(int64_t which) { return low_.data() + which * rows_ * adapters_.rank; }

    Pool::Turn& pool_;
    const Arithmetic& run_;
    const Adapters& adapters_;
    std::vector<float> low_;  // x A^T of each, (rows, rank)
    int64_t rows_ = 0, layer_ = 0, count_ = 0;
    int of_[kMost];
};
