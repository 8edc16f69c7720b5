// Which numbers dropout takes: a function of a batch's key, a place, a row and a column (model/dropout.py), so that a mask is
// never kept and is the same for any number of threads, in the backward pass and recomputed.
#pragma once

#include <cstdint>

// Of one place. A share `threshold` / 2^31 is dropped, and the rest times `scale`.
struct Mask {
    uint32_t place, first_row;  // mixed with the key; of the batch in its step
    int32_t threshold;
    float scale;
};

constexpr uint32_t kRowFactor = 0x27D4EB2D, kColumnFactor = 0x165667B1, kMixFactor = 0x7FEB352D;

inline uint32_t mixed(uint32_t bits) {
    bits = (bits ^ static_cast<uint32_t>(static_cast<int32_t>(bits) >> 16)) * kMixFactor;
    return bits ^ static_cast<uint32_t>(static_cast<int32_t>(bits) >> 15);
}

// Of a training step. A threshold of 0 drops nothing. `places`: of the embedding, then of each layer's attention and MLP and
// of its linear layers' adapters.
struct Dropout {
    static constexpr int64_t kPlaces = 9;  // of a layer

    uint32_t key, first_row;
    int32_t threshold, adapter_threshold;
    float scale, adapter_scale;
    const int64_t* places;

    bool drops() const { return threshold > 0; }

    Mask embedding() const { return of(0, threshold, scale); }
    Mask attention(int64_t layer) const { return of(1 + kPlaces * layer, threshold, scale); }
    Mask mlp(int64_t layer) const { return of(2 + kPlaces * layer, threshold, scale); }
    Mask adapter(int64_t layer, int linear) const {
        return of(3 + kPlaces * layer + linear, adapter_threshold, adapter_scale);
    }

  private:
    Mask of(int64_t at, int32_t threshold_, float scale_) const {
        return {mixed(key + static_cast<uint32_t>(places[at])), first_row, threshold_, scale_};
    }
};
