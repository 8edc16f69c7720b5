#include "training_memory.h"

#include <algorithm>
#include <new>

#include "model.h"

namespace {

constexpr int64_t kLogits = 16 * 1024 * 1024;  // that are in memory at once: 64 MB

char* memory_of(size_t size) {
    static KeptMemory* memory = new KeptMemory;
    if (char* found = memory->of(size)) return found;
    throw std::bad_alloc();
}

}  // namespace

TrainingMemory::TrainingMemory(const TrainingShape& shape, const TrainingWeights& weights, const Adapters& adapters,
                               float* const* gradients)
    : TrainingMemory(shape, weights, adapters, gradients, Unlaid{}) {
    Arena arena(memory_of(measure()));
    lay_out(arena);
}

TrainingMemory::TrainingMemory(const TrainingShape& shape, const TrainingWeights& weights, const Adapters& adapters,
                               float* const* gradients, Unlaid)
    : shape_(shape),
      weights_(weights),
      adapters_(adapters),
      gradients_(gradients),
      count_(shape.batch * shape.tokens),
      pieces_((count_ + kRows - 1) / kRows),
      logit_rows_(std::clamp<int64_t>(kLogits / shape.vocabulary, 1, count_)) {}

size_t TrainingMemory::bytes(const TrainingShape& shape, const Matrix* matrices, const Adapters& adapters) {
    const std::vector<const void*> vectors(11 * shape.layers + 2);
    const TrainingWeights weights = {matrices, vectors.data()};
    float* const some[1] = {};
    return TrainingMemory(shape, weights, adapters, some, Unlaid{}).measure();
}

size_t TrainingMemory::measure() {
    Arena measured(nullptr);
    lay_out(measured);
    return measured.used();
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
    lay_out_room(arena);
    lay_out_linears(arena);
    table_ = is_packed(embedding())
                 ? room_
                 : typed(arena, embedding().data, embedding().type, shape_.type, shape_.vocabulary * hidden);
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
    const int64_t adapted = adapters_.drops ? 2 * wide + count_ * std::max(hidden, mlp) : 0;
    dropped_ = static_cast<char*>(take(arena, adapted));
    through_ = arena.take<float>(adapted);
    sums_ = arena.take<float>(pieces_ * 2 * std::max(hidden, mlp));
}

// One room serves all layers, and the embedding when they have been computed.
void TrainingMemory::lay_out_room(Arena& arena) {
    int64_t offsets[kLinears], used = 0;
    for (int i = 0; i < kLinears; ++i) {
        offsets[i] = used;
        bool packed = false;
        for (int64_t l = 0; l < shape_.layers; ++l) packed |= is_packed(matrix(l, i));
        if (packed) used += (outputs_of(i) * inputs_of(i) * bytes_of(shape_.type) + 63) / 64 * 64;
    }
    const int64_t table = is_packed(embedding()) ? shape_.vocabulary * shape_.hidden * bytes_of(shape_.type) : 0;
    room_ = arena.take<char>(std::max(used, table));
    for (int i = 0; i < kLinears; ++i) places_[i] = room_ ? room_ + offsets[i] : nullptr;
}

void TrainingMemory::lay_out_linears(Arena& arena) {
    const int64_t rank = adapters_.rank;
    const int32_t type = shape_.type;
    void *low[kLinears] = {}, *low_change[kLinears] = {};
    for (int i = 0; i < kLinears; ++i) {
        if (shares_layers()) low[i] = take(arena, count_ * rank);
        if (differentiates()) low_change[i] = take(arena, count_ * rank);
    }
    for (int64_t l = 0; l < shape_.layers; ++l)
        for (int i = 0; i < kLinears; ++i) {
            Linear& made = kept_[l].linears[i] = Linear{};
            made.outputs = outputs_of(i);
            made.inputs = inputs_of(i);
            const Matrix& from = matrix(l, i);
            made.weights = is_packed(from) ? places_[i]
                                           : typed(arena, from.data, from.type, type, made.outputs * made.inputs);
            made.bias = static_cast<const float*>(typed(arena, bias(l, i), shape_.bias_type, kFloat32, made.outputs));
            const float* const* adapter = trains_weights() ? nullptr : adapters_.values + (l * kLinears + i) * 2;
            if (!adapter || !adapter[0]) continue;
            made.rank = rank;
            made.a = typed(arena, adapter[0], kFloat32, type, rank * made.inputs);
            made.b = typed(arena, adapter[1], kFloat32, type, made.outputs * rank);
            made.scaled_a = copied(arena, adapter[0], kFloat32, type, rank * made.inputs, adapters_.scale);
            made.scaled_b = copied(arena, adapter[1], kFloat32, type, made.outputs * rank, adapters_.scale);
            made.low = shares_layers() ? low[i] : take(arena, count_ * rank);
            made.low_change = low_change[i];
        }
}

// Numbers of the products' type.
void* TrainingMemory::take(Arena& arena, int64_t count) const { return arena.take<char>(count * bytes_of(shape_.type)); }

// Numbers in a type: where they lie, or a copy.
const void* TrainingMemory::typed(Arena& arena, const void* from, int32_t from_type, int32_t type, int64_t count) {
    return from_type == type ? from : copied(arena, from, from_type, type, count, 1.0f);
}

const void* TrainingMemory::copied(Arena& arena, const void* from, int32_t from_type, int32_t type, int64_t count,
                                   float factor) {
    constexpr int64_t kPart = 32768;  // a thread's turn
    char* to = arena.take<char>(count * bytes_of(type));
    for (int64_t first = 0; to && first < count; first += kPart)
        copies_.push_back({static_cast<const char*>(from) + first * bytes_of(from_type), from_type, type,
                           to + first * bytes_of(type), std::min(kPart, count - first), factor});
    return to;
}

extern "C" {

EXPORTED int64_t spark_logits_at_once() { return kLogits; }

// What a step holds that computes gradients. `numbers`: those of TrainingShape in its order, but window and epsilon; then
// the rank of adapters, a number whose bits are the linear layers that have one, and whether their inputs are dropped.
// `types`: of the embedding and of the 7 matrices of each layer. -> bytes, -1 for such a shape there is no step.
EXPORTED int64_t spark_training_bytes(const int64_t* numbers, const int32_t* types) {
    TrainingShape shape{};
    int64_t* const sizes[] = {&shape.batch, &shape.tokens, &shape.layers,    &shape.hidden,
                              &shape.heads, &shape.mlp,    &shape.vocabulary};
    for (int64_t* size : sizes) *size = *numbers++;
    for (int32_t* type : {&shape.type, &shape.bias_type}) *type = static_cast<int32_t>(*numbers++);
    shape.recompute = *numbers++ != 0;
    shape.window = 1;
    const int64_t rank = numbers[0], adapted = numbers[1];
    if (!shape.valid() || rank < 0) return -1;
    std::vector<Matrix> matrices;
    for (int64_t i = 0; i < 1 + kLinears * shape.layers; ++i) matrices.push_back({nullptr, nullptr, types[i], 0, 0});
    float some = 0.0f;
    std::vector<float*> values;
    for (int64_t i = 0; rank > 0 && i < shape.layers * kLinears * 2; ++i)
        values.push_back(adapted >> (i / 2 % kLinears) & 1 ? &some : nullptr);
    const Adapters adapters{rank > 0 ? values.data() : nullptr, rank, 1.0f, rank > 0 && numbers[2] != 0};
    return static_cast<int64_t>(TrainingMemory::bytes(shape, matrices.data(), adapters));
}

}  // extern "C"
