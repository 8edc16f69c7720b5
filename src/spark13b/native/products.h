// Products of many rows: oneDNN's, from the library that MindSpore brings, one piece of the result on one thread of ours.
//
// oneDNN's own threads are not used: a piece is the same for any number of them, and so are the numbers; and who has
// nothing to do takes the next piece, where oneDNN's threads get equal parts and wait for the slowest.
#pragma once

#include <cstdint>

#include "weights.h"

// How a matrix lies in memory: kFloat32 or kBfloat16, and the elements from a row to the next and from a column to the
// next, of which one is 1.
struct Layout {
    int32_t type;
    int64_t row, column;
};

// C (rows, columns) = A (rows, depth) B (depth, columns), with a bias (columns,) or not, in place of what is in C or added
// to it. Plan it in one thread, run its pieces in any; a plan lives as long as the process.
class Product {
  public:
    struct Shape {
        int64_t rows, columns, depth;
        Layout a, b, c;
        bool bias, adds;
    };
    struct Piece {
        int64_t row, rows, column, columns;
    };

    // Null without oneDNN, or when it refuses.
    static const Product* plan(const Shape& shape);

    int64_t pieces() const { return row_parts_ * column_parts_; }
    Piece piece(int64_t number) const;

    // `a`, `c` and `bias` are whole, `b` begins with the piece's first column. -> false when oneDNN fails.
    bool run_part(int64_t number, const void* a, const void* b_part, const float* bias, void* c) const;
    // The same with a whole `b`.
    bool run(int64_t number, const void* a, const void* b, const float* bias, void* c) const;

  private:
    struct Kernel;

    explicit Product(const Shape& shape);
    bool make();

    Shape shape_;
    int64_t row_size_, column_size_, row_parts_, column_parts_;
    Kernel* kernels_[2][2] = {};  // of whole and of last pieces, by rows and by columns
};

// Use the oneDNN at `path` -> its version, major * 100 + minor, or 0 when it cannot be used; the first that can stays.
int open_onednn(const char* path);
