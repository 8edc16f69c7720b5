// One head's part of a text's ring: rows of keys or values, float32 or bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "weights.h"

class Ring {
  public:
    // `head` of rings (heads * slots, size)
    Ring(void* rings, int32_t type, int64_t head, int64_t slots, int64_t size)
        : data_(static_cast<char*>(rings) + head * slots * size * bytes_of(type)), type_(type), slots_(slots), size_(size) {}

    const void* rows() const { return data_; }
    int32_t type() const { return type_; }

    // Where the row of the token at `position` lies.
    void* place(int64_t position) const { return data_ + position % slots_ * size_ * bytes_of(type_); }

    // That row becomes `from`.
    void put(int64_t position, const float* from) {
        if (type_ == kBfloat16)
            for (int64_t d = 0; d < size_; ++d) static_cast<uint16_t*>(place(position))[d] = narrowed(from[d]);
        else
            std::memcpy(place(position), from, size_ * sizeof(float));
    }

  private:
    char* data_;
    int32_t type_;
    int64_t slots_, size_;
};
