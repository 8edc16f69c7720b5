// bfloat16, the upper half of a float32.
#pragma once

#include <cstdint>
#include <cstring>

// The nearest, ties to even; what is no number stays none.
inline uint16_t narrowed(float from) {
    uint32_t bits;
    std::memcpy(&bits, &from, sizeof bits);
    const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : nearest);
}

inline float widened(uint16_t from) {
    const uint32_t bits = static_cast<uint32_t>(from) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}
