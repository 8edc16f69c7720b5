// A matrix of weights as a checkpoint stores it: (outputs, inputs), row after row.
#pragma once

#include <cstdint>

enum Type : int32_t {
    kFloat32 = 0,
    kBfloat16 = 1,  // the upper 16 bits of a float32
    kInt8 = 2,
    kInt4 = 3,  // see stored.h
};

// What the four bits of an int4 weight stand for: closer where weights are dense.
inline constexpr int8_t kLevelBytes[16] = {-127, -92, -69, -51, -36, -23, -12, -1, 9, 19, 30, 42, 55, 70, 88, 111};
inline constexpr float kLevels[16] = {-127, -92, -69, -51, -36, -23, -12, -1, 9, 19, 30, 42, 55, 70, 88, 111};

inline int bits_of(int32_t type) { return type == kFloat32 ? 32 : type == kBfloat16 ? 16 : type == kInt8 ? 8 : 4; }

struct Matrix {
    const void* data;
    const void* scales;  // of whole numbers, (outputs, inputs / group); else null
    int32_t type;        // a Type
    int32_t group;       // inputs that share a scale; else 0
};
