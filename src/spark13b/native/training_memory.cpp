#include "training_memory.h"

#include <algorithm>
#include <new>

namespace {

constexpr int64_t kLogits = 16 * 1024 * 1024;  // that are in memory at once: 64 MB

char* memory_of(size_t size) {
    static KeptMemory* memory = new KeptMemory;
    if (char* found = memory->of(size)) return found;
    throw std::bad_alloc();
}

}  // namespace

TrainingMemory::TrainingMemory(const TrainingShape& shape, const float* const* weights, const Adapters& adapters,
                               float* const* gradients)
    : shape_(shape),
      weights_(weights),
      adapters_(adapters),
      gradients_(gradients),
      count_(shape.batch * shape.tokens),
      pieces_((count_ + kRows - 1) / kRows),
      logit_rows_(std::clamp<int64_t>(kLogits / shape.vocabulary, 1, count_)) {
    Arena measured(nullptr);
    lay_out(measured);
    Arena arena(memory_of(measured.used()));
    lay_out(arena);
}

void TrainingMemory::lay_out(Arena& arena) {
    const int64_t hidden = shape_.hidden, mlp = shape_.mlp, wide = count_ * hidden;
    kept_.assign(shape_.layers, Kept{});
    for (int64_t l = 0; l < shape_.layers; ++l) {
        Kept& kept = kept_[l];
        if (shares_layers() && l > 0) {
            kept = kept_[0];
            kept.x = differentiates() ? arena.take<float>(wide) : kept_[l % 2].x;
        }
        if (!shares_layers() || l == 0) {
            for (float** rows : {&kept.x, &kept.q, &kept.k, &kept.v, &kept.attended, &kept.middle})
                *rows = arena.take<float>(wide);
            kept.log_sums = arena.take<float>(count_ * shape_.heads);
            kept.gate = take(arena, count_ * mlp);
            kept.up = take(arena, count_ * mlp);
        }
        if (!differentiates() && l == 1) kept.x = arena.take<float>(wide);  // two that take turns
    }
    copies_.clear();
    lay_out_linears(arena);
    table_ = typed(arena, weights_[0], shape_.vocabulary * hidden);
    final_ = arena.take<float>(wide);
    h_ = take(arena, wide);
    act_ = take(arena, count_ * mlp);
    logits_ = arena.take<float>(logit_rows_ * shape_.vocabulary);
    losses_ = arena.take<float>(count_);
    hits_ = arena.take<float>(count_);
    for (void*& narrow : narrow_) narrow = shape_.type == kBfloat16 ? take(arena, wide) : nullptr;
    if (!differentiates()) return;
    for (float** rows : {&change_, &dh_, &dq_, &dk_, &dv_}) *rows = arena.take<float>(wide);
    dgate_ = take(arena, count_ * mlp);
    dup_ = take(arena, count_ * mlp);
    sums_ = arena.take<float>(pieces_ * 2 * std::max(hidden, mlp));
}

void TrainingMemory::lay_out_linears(Arena& arena) {
    const int64_t rank = adapters_.rank;
    void *low[kLinears] = {}, *low_change[kLinears] = {};
    for (int i = 0; i < kLinears; ++i) {
        if (shares_layers()) low[i] = take(arena, count_ * rank);
        if (differentiates()) low_change[i] = take(arena, count_ * rank);
    }
    for (int64_t l = 0; l < shape_.layers; ++l)
        for (int i = 0; i < kLinears; ++i) {
            Linear& made = kept_[l].linears[i] = Linear{};
            made.outputs = i == kGate || i == kUp ? shape_.mlp : shape_.hidden;
            made.inputs = i == kDown ? shape_.mlp : shape_.hidden;
            made.weights = typed(arena, array(l, place_of(i)), made.outputs * made.inputs);
            made.bias = array(l, place_of(i) + 1);
            const float* const* adapter = trains_weights() ? nullptr : adapters_.values + (l * kLinears + i) * 2;
            if (!adapter || !adapter[0]) continue;
            made.rank = rank;
            made.a = typed(arena, adapter[0], rank * made.inputs);
            made.b = typed(arena, adapter[1], made.outputs * rank);
            made.scaled_a = copied(arena, adapter[0], rank * made.inputs, adapters_.scale);
            made.scaled_b = copied(arena, adapter[1], made.outputs * rank, adapters_.scale);
            made.low = shares_layers() ? low[i] : take(arena, count_ * rank);
            made.low_change = low_change[i];
        }
}

// Numbers of the products' type.
void* TrainingMemory::take(Arena& arena, int64_t count) const {
    return arena.take<char>(count * (shape_.type == kBfloat16 ? 2 : 4));
}

// Numbers in the products' type: where they lie, or a copy.
const void* TrainingMemory::typed(Arena& arena, const float* from, int64_t count) {
    return shape_.type == kBfloat16 ? copied(arena, from, count, 1.0f) : from;
}

const void* TrainingMemory::copied(Arena& arena, const float* from, int64_t count, float factor) {
    constexpr int64_t kPart = 32768;  // a thread's turn
    void* to = take(arena, count);
    for (int64_t first = 0; to && first < count; first += kPart)
        copies_.push_back({from + first, at(to, first, 1), std::min(kPart, count - first), factor});
    return to;
}
