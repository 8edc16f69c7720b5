// float16: a sign, 5 bits of exponent, 10 of fraction. A type of its own, since bfloat16's bits are plain numbers of 16.
#pragma once

#include <cstdint>
#include <cstring>

struct Float16 {
    uint16_t bits;
};

// Exact, with or without the processor's instruction for it.
inline float widened(Float16 from) {
    const uint32_t magnitude = from.bits & 0x7fff;
    float wide = static_cast<float>(magnitude) * 0x1p-24f;  // 2^-24: what the bits below the least exponent stand for
    uint32_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    if (magnitude >= 0x400) bits = (magnitude << 13) + ((magnitude >= 0x7c00 ? 224u : 112u) << 23);
    bits |= static_cast<uint32_t>(from.bits & 0x8000) << 16;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}
