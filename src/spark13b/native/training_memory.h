// What a training step holds: rows that layers leave for their gradients, rows at work, and weights and adapters as
// products take them: where they lie, copied once a step, or, of whole numbers, unpacked whenever a layer needs them.
#pragma once

#include <cstdint>
#include <vector>

#include "linear.h"
#include "memory.h"
#include "training.h"

// What a layer's forward pass leaves for its backward pass. Rows are (N, C), those of gate and up (N, F).
struct Kept {
    float *x, *q, *k, *v, *attended, *log_sums, *middle;  // `middle`: behind attention; q and k rotated
    void *gate, *up;                                      // of the products' type
    Linear linears[kLinears];
};

// Numbers that are to be copied, times a factor, in another type.
struct Copy {
    const void* from;
    int32_t from_type, type;
    void* to;
    int64_t count;
    float factor;
};

// The memory stays from call to call; one caller at a time may have it.
class TrainingMemory {
  public:
    // What a step holds that computes gradients; nothing is made.
    static size_t bytes(const TrainingShape& shape, const Matrix* matrices, const Adapters& adapters);

  protected:
    static constexpr int64_t kRows = 32;  // of a piece between products

    // Throws std::bad_alloc. What is in `copies_` is to be copied before anything is computed.
    TrainingMemory(const TrainingShape& shape, const TrainingWeights& weights, const Adapters& adapters,
                   float* const* gradients);

    bool differentiates() const { return gradients_ != nullptr; }
    bool trains_weights() const { return adapters_.values == nullptr; }

    const Matrix& embedding() const { return weights_.matrices[0]; }
    const Matrix& matrix(int64_t layer, int linear) const { return weights_.matrices[1 + kLinears * layer + linear]; }
    static bool is_packed(const Matrix& matrix) { return bits_of(matrix.type) < 16; }

    // A gamma or beta of a layer, or of the last norm behind them; in a checkpoint matrices lie between the vectors.
    const float* norm_array(int64_t layer, int place) const {
        return static_cast<const float*>(weights_.vectors[11 * layer + place - (place >= kMlpNorm ? 4 : 0)]);
    }
    const void* bias(int64_t layer, int linear) const { return weights_.vectors[11 * layer + place_of(linear) - linear]; }

    // The gradient of an array of a layer, or of the last norm; null where it is not trained.
    float* gradient(int64_t layer, int place) const {
        return trains_weights() ? gradients_[1 + kArrays * layer + place] : nullptr;
    }
    float* bias_gradient(int64_t layer, int linear) const { return gradient(layer, place_of(linear) + 1); }

    // A row of rows in the products' type.
    char* at(const void* rows, int64_t row, int64_t width) const {
        return static_cast<char*>(const_cast<void*>(rows)) + row * width * bytes_of(shape_.type);
    }

    const TrainingShape& shape_;
    const TrainingWeights& weights_;
    const Adapters& adapters_;
    float* const* gradients_;
    const int64_t count_, pieces_, logit_rows_;  // N; its pieces; logits that are in memory at once

    std::vector<Copy> copies_;
    std::vector<Kept> kept_;
    const void* table_;      // the embedding
    char* room_;             // for the embedding, or for a layer, where they are packed
    char* places_[kLinears];  // a layer's matrices in it
    float *final_, *logits_, *losses_, *hits_, *change_, *dh_, *dq_, *dk_, *dv_, *sums_;
    void *h_, *act_, *dgate_, *dup_, *narrow_[3];

    // Where linear layers' inputs lie for adapters with dropout, and the gradients of these, in float32; null without.
    // Layers whose products are in the same run have places of their own.
    char* dropped(int linear) const { return dropped_ + first_of(linear) * bytes_of(shape_.type); }
    float* through(int linear) const { return through_ + first_of(linear); }

  private:
    struct Unlaid {};

    TrainingMemory(const TrainingShape& shape, const TrainingWeights& weights, const Adapters& adapters,
                   float* const* gradients, Unlaid);

    int64_t first_of(int linear) const {
        constexpr int64_t kPlaces[kLinears] = {0, 1, 2, 0, 0, 1, 2};
        return kPlaces[linear] * count_ * shape_.hidden;
    }

    size_t measure();
    void lay_out(Arena& arena);
    void lay_out_room(Arena& arena);
    void lay_out_linears(Arena& arena);
    int64_t outputs_of(int linear) const { return linear == kGate || linear == kUp ? shape_.mlp : shape_.hidden; }
    int64_t inputs_of(int linear) const { return linear == kDown ? shape_.mlp : shape_.hidden; }
    void* take(Arena& arena, int64_t count) const;
    const void* typed(Arena& arena, const void* from, int32_t from_type, int32_t type, int64_t count);
    const void* copied(Arena& arena, const void* from, int32_t from_type, int32_t type, int64_t count, float factor);

    char* dropped_;
    float* through_;

    // Whether layers use the same memory one after the other, but for their inputs.
    bool shares_layers() const { return shape_.recompute || !differentiates(); }
};
