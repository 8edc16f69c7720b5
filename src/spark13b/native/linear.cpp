#include "linear.h"

#include <algorithm>
#include <utility>

void Rounds::forward(const Linear& layer, const void* x, void* y, int32_t y_type, bool adds,
                     const void* adapted) {
    const int64_t outputs = layer.outputs, inputs = layer.inputs, rank = layer.rank;
    const Layout to{y_type, outputs, 1};
    if (y)
        add({rows_, outputs, inputs, rows_of(inputs), columns_of(inputs), to, true, adds}, x, layer.weights, layer.bias,
            y);
    if (rank == 0) return;
    add({rows_, rank, inputs, rows_of(inputs), columns_of(inputs), rows_of(rank), false, false}, adapted ? adapted : x,
        layer.scaled_a, nullptr, layer.low);
    if (y) add({rows_, outputs, rank, rows_of(rank), columns_of(rank), to, false, true}, layer.low, layer.b, nullptr, y);
}

void Rounds::backward(const Linear& layer, const void* dy, void* dx, int32_t dx_type, bool adds,
                      float* adapted) {
    const int64_t outputs = layer.outputs, inputs = layer.inputs, rank = layer.rank;
    const Layout to{dx_type, inputs, 1};
    if (dx)
        add({rows_, inputs, outputs, rows_of(outputs), rows_of(inputs), to, false, adds}, dy, layer.weights, nullptr, dx);
    if (rank == 0) return;
    add({rows_, rank, outputs, rows_of(outputs), rows_of(rank), rows_of(rank), false, false}, dy, layer.scaled_b,
        nullptr, layer.low_change);
    if (adapted)
        add({rows_, inputs, rank, rows_of(rank), rows_of(inputs), {kFloat32, inputs, 1}, false, false}, layer.low_change,
            layer.a, nullptr, adapted);
    else if (dx)
        add({rows_, inputs, rank, rows_of(rank), rows_of(inputs), to, false, true}, layer.low_change, layer.a, nullptr,
            dx);
}

void Rounds::gradients(const Linear& layer, const void* x, const void* dy, float* dweights, float* da, float* db,
                       const void* adapted) {
    const int64_t outputs = layer.outputs, inputs = layer.inputs, rank = layer.rank;
    const auto state = [&](const void* from, int64_t rows, const void* by, int64_t columns, float* to) {
        if (to)
            add({rows, columns, rows_, columns_of(rows), rows_of(columns), {kFloat32, columns, 1}, false, false}, from,
                by, nullptr, to);
    };
    state(dy, outputs, x, inputs, dweights);
    state(layer.low_change, rank, adapted ? adapted : x, inputs, da);
    state(dy, outputs, layer.low, rank, db);
}

void Rounds::add(const Product::Shape& shape, const void* a, const void* b, const float* bias, void* c) {
    const Product* product = Product::plan(shape, level_);
    if (!product) throw Failure();
    const size_t round = std::max({after(a), after(b), after(c)});
    if (round == rounds_.size()) rounds_.emplace_back();
    rounds_[round].push_back({product, a, b, bias, c});
}

void Rounds::run() {
    const auto all = std::move(rounds_);
    rounds_.clear();
    for (const auto& round : all)
        if (!multiply(pool_, round.data(), static_cast<int64_t>(round.size()))) throw Failure();
}

size_t Rounds::after(const void* data) const {
    size_t found = 0;
    for (size_t round = 0; round < rounds_.size(); ++round)
        for (const Multiplication& one : rounds_[round])
            if (one.c == data) found = round + 1;
    return found;
}
