// A matrix of weights (outputs, inputs) as a checkpoint stores it.
//
// float32, bfloat16 and float16 lie row after row. int8 and int4 lie in strips of 16 rows (the last one has what is left), and
// in a strip column after column, as vectors read them: four bytes of each of its rows, then the next four of each. An int8
// weight is a byte; of int4's four bytes k = 0 to 3 are the columns k in their low bits and k + 4 in their high ones. Scales
// lie in the same strips, one of each row, then the next of each.
#pragma once

#include <cstdint>

enum Type : int32_t {
    kFloat32 = 0,
    kBfloat16 = 1,  // the upper 16 bits of a float32
    kInt8 = 2,
    kInt4 = 3,
    kFloat16 = 4,  // of weights alone: no product's, and not in training
};

inline constexpr int64_t kStrip = 16;  // rows

// What the four bits of an int4 weight stand for: closer where weights are dense.
inline constexpr int8_t kLevelBytes[16] = {-127, -92, -69, -51, -36, -23, -12, -1, 9, 19, 30, 42, 55, 70, 88, 111};

inline int bits_of(int32_t type) {
    return type == kFloat32 ? 32 : type == kBfloat16 || type == kFloat16 ? 16 : type == kInt8 ? 8 : 4;
}

// Of a type that lies row after row.
inline int64_t bytes_of(int32_t type) { return bits_of(type) / 8; }

struct Matrix {
    const void* data;
    const void* scales;  // of whole numbers, (outputs, inputs / group); else null
    int32_t type;        // a Type
    int32_t group;       // inputs that share a scale; else 0
    int64_t outputs;     // its rows
};
